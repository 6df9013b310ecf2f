"""Encoded numbers: on one scale, by what was trained on, each candidate by itself."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.hstu.numbers import HORIZON, KNOTS, NumberEncoding

FEATURES = 3


def drawn(rows: int, seed: int) -> Tensor:
    """Features of very different scales: a price, a count, a rate."""
    random = np.random.default_rng(seed)
    columns = [random.lognormal(8, 1, rows), random.poisson(2, rows), random.random(rows) / 100]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


@given(sizes=st.lists(st.integers(0, 200), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_mean_and_deviation_are_those_of_all_rows_in_any_batches(sizes: list[int], seed: int) -> None:
    rows = drawn(sum(sizes), seed)
    encoding = NumberEncoding(FEATURES).train()
    for part in rows.split(sizes):
        encoding(part)
    standard = encoding.eval()(rows)[:, :FEATURES]
    if len(rows) > 1:
        deviation = (rows.double().var(dim=0, correction=0)).clamp(min=1e-6).sqrt()
        expected = ((rows.double() - rows.double().mean(0)) / deviation).clamp(-5, 10)
        torch.testing.assert_close(standard.double(), expected, rtol=1e-3, atol=1e-3)


def test_knots_measure_how_far_above_them_a_value_lies() -> None:
    encoding = NumberEncoding(1).eval()  # nothing seen: mean 0, deviation 1
    encoded = encoding(torch.tensor([[0.75], [-2.0]]))
    expected = [0.5 * max(0.0, 0.75 - knot) for knot in KNOTS]
    torch.testing.assert_close(encoded[0], torch.tensor([0.75, *expected]))
    assert encoded[1].tolist() == [-2.0, *[0.0] * len(KNOTS)]


def test_evaluation_changes_nothing_and_scores_each_row_alone() -> None:
    encoding = NumberEncoding(FEATURES).train()
    encoding(drawn(100, 0))
    before = {name: value.clone() for name, value in encoding.state_dict().items()}
    rows = drawn(50, 1)
    together = encoding.eval()(rows)
    assert all(value.equal(before[name]) for name, value in encoding.state_dict().items())
    assert torch.cat([encoding(row[None]) for row in rows]).equal(together)


def test_constant_and_missing_features_stay_finite() -> None:
    encoding = NumberEncoding(FEATURES).train()
    assert encoding(torch.full((10, FEATURES), 7.0)).isfinite().all()
    assert encoding.eval()(torch.full((1, FEATURES), 1e30)).isfinite().all()
    assert NumberEncoding(0)(torch.zeros(4, 0)).shape == (4, 0)


def test_what_is_long_past_is_forgotten() -> None:
    encoding = NumberEncoding(1).train()
    encoding(torch.zeros(HORIZON, 1))
    for _ in range(40):
        encoding(torch.full((HORIZON // 8, 1), 5.0))
    assert encoding.mean_F.item() > 4.9
