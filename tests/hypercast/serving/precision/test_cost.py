"""What other logits cost is what labels would show on average."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hypercast.serving.precision.cost import divergence


@given(seed=st.integers(0, 10_000), scale=st.floats(0.0, 5.0))
def test_equals_cost_nothing_and_others_something(seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    p_CT = torch.from_numpy(random.normal(size=(9, 2)) * 4)
    assert divergence(p_CT, p_CT).ne_cost_pct == 0.0
    cost = divergence(p_CT, p_CT + scale * torch.from_numpy(random.normal(size=(9, 2)))).ne_cost_pct
    assert cost > 0.0 if scale > 1e-3 else cost >= 0.0


def test_the_cost_is_that_of_labels_drawn_by_the_reference() -> None:
    random = np.random.default_rng(0)
    p_C, noise_C = random.normal(-1, 1, 400_000), random.normal(0, 0.4, 400_000)
    label_C = random.random(400_000) < 1 / (1 + np.exp(-p_C))

    def loss(logit_C: np.ndarray) -> float:
        return float(np.mean(np.logaddexp(0, logit_C) - label_C * logit_C))

    measured = 100 * (loss(p_C + noise_C) - loss(p_C)) / loss(p_C)
    found = divergence(torch.from_numpy(p_C)[:, None], torch.from_numpy(p_C + noise_C)[:, None]).ne_cost_pct
    assert found == pytest.approx(measured, rel=0.1)


def test_very_sure_logits_stay_finite() -> None:
    sure_CT = torch.tensor([[800.0, -800.0]])
    assert divergence(sure_CT, sure_CT + 1).ne_cost_pct == pytest.approx(0.0)
    assert np.isfinite(divergence(sure_CT, -sure_CT).extra)
