"""Running statistics are those of all rows at once, however they come."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hypercast.serving.precision.moments import Moments


@given(
    rows=st.integers(1, 60),
    width=st.integers(1, 5),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    shift=st.sampled_from([0.0, 1e4]),
    seed=st.integers(0, 10_000),
)
def test_any_cut_of_a_stream_gives_its_mean_and_variance(
    rows: int, width: int, cuts: list[int], shift: float, seed: int
) -> None:
    x_NI = np.random.default_rng(seed).normal(size=(rows, width)) + shift
    whole, parts = Moments(width), Moments(width)
    for part in np.split(x_NI, sorted(min(cut, rows) for cut in cuts)):
        parts.update(torch.from_numpy(part))
        one = Moments(width)
        one.update(torch.from_numpy(part))
        whole.merge(one)
    for moments in (whole, parts):
        assert moments.count == rows
        np.testing.assert_allclose(moments.mean_I, x_NI.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(moments.variance_I, x_NI.var(axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(moments.power_I, np.square(x_NI).mean(axis=0), rtol=1e-9)


def test_small_deviations_survive_a_large_mean_in_float32_input() -> None:
    moments = Moments(1)
    x_NI = torch.tensor([[4096.0], [4096.5]]).repeat(1000, 1)
    for part in x_NI.split(7):
        moments.update(part)
    assert moments.variance_I.item() == pytest.approx(0.0625)


@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_the_typical_largest_of_gaussian_rows_is_their_median(mean: float) -> None:
    random = np.random.default_rng(3)
    x_NI = torch.from_numpy(mean + random.normal(size=(20_000, 24)) * random.uniform(0.1, 2.0, 24))
    moments = Moments(24)
    moments.update(x_NI)
    assert moments.typical_largest() == pytest.approx(float(x_NI.abs().amax(1).median()), rel=0.02)


def test_nothing_seen_is_nothing_expected() -> None:
    moments = Moments(3)
    moments.update(torch.zeros(0, 3))
    assert moments.count == 0
    assert moments.power_I.sum() == 0
    assert moments.typical_largest() == pytest.approx(0.0, abs=1e-9)
