"""The transfer ratio against its definition."""

import numpy as np
import pytest

from streaming.errors import DataError
from tests.transfer.conftest import _make_table as make_table
from transfer import ratio, sums
from transfer.sums import UserSums


def made(fm: float, tae: float, *, requests: int = 400) -> UserSums:
    """Rows with a teacher and an expert that err by so much; the same rows for every error."""
    noise = {"control": 1.0, "tae": tae, "fm_head": fm}
    return sums.accumulate(make_table(seed=3, noise=noise, seeds=2, requests=requests), task="buy")


def test_it_is_the_definition() -> None:
    small, large = made(0.9, 0.8), made(0.5, 0.6)
    found = ratio.transfer_ratio(small, large, arm="tae", replicates=500)
    ne = [each.mean_by_arm("ne") for each in (small, large)]
    expected = (ne[0]["tae"] - ne[1]["tae"]) / (ne[0]["fm_head"] - ne[1]["fm_head"])
    assert found.value == pytest.approx(expected)
    assert found.lo < found.value < found.hi
    assert found.teacher_gain_pct == pytest.approx(100 * (1 - ne[1]["fm_head"] / ne[0]["fm_head"]))
    assert found.expert_gain_pct == pytest.approx(100 * (1 - ne[1]["tae"] / ne[0]["tae"]))


def test_an_expert_that_is_its_teacher_has_a_ratio_of_one() -> None:
    def as_teacher(each: UserSums) -> UserSums:
        loss = each.loss.copy()
        teacher = next(i for i, column in enumerate(each.columns) if column.arm == "fm_head")
        for index, column in enumerate(each.columns):
            if column.arm == "tae":
                loss[:, index] = loss[:, teacher]
        return UserSums(**{**each.__dict__, "loss": loss})

    only = [as_teacher(made(fm, 0.5)) for fm in (0.9, 0.5)]
    only = [each.only([c for c in each.columns if c.arm != "fm_head" or c.seed == 0]) for each in only]
    found = ratio.transfer_ratio(*only, arm="tae", replicates=200)
    np.testing.assert_allclose([found.value, found.lo, found.hi], 1.0)


def test_over_what_may_be_nothing_it_has_no_interval() -> None:
    def taught_by(each: UserSums, seed: int) -> UserSums:
        """With one of two equally good controls as the teacher."""
        loss = each.loss.copy()
        place = {(column.arm, column.seed): a for a, column in enumerate(each.columns)}
        loss[:, place["fm_head", 0]] = loss[:, place["control", seed]]
        return UserSums(**{**vars(each), "loss": loss})

    found = ratio.transfer_ratio(taught_by(made(0.9, 0.8), 0), taught_by(made(0.5, 0.6), 1), arm="tae", replicates=300)
    assert np.isfinite(found.value)
    assert (found.lo, found.hi) == (None, None)


def test_differing_seeds_widen_the_interval() -> None:
    steady = made(0.9, 0.8), made(0.5, 0.6)

    def shaken(each: UserSums, by: float) -> UserSums:
        loss = each.loss.copy()
        for a, column in enumerate(each.columns):
            if column.arm == "tae":
                loss[:, a] *= 1 + by * (-1) ** column.seed
        return UserSums(**{**vars(each), "loss": loss})

    unsteady = shaken(steady[0], 0.1), shaken(steady[1], -0.1)
    narrow, wide = (ratio.transfer_ratio(*each, arm="tae", replicates=500) for each in (steady, unsteady))
    assert wide.hi - wide.lo > 2 * (narrow.hi - narrow.lo)
    assert wide.value == pytest.approx(narrow.value, abs=0.1)


def test_what_cannot_be_compared_is_refused() -> None:
    small, large = made(0.9, 0.8), made(0.5, 0.6)
    with pytest.raises(DataError, match=r"no arm 'kd'.*control, fm_head, tae"):
        ratio.transfer_ratio(small, large, arm="kd")
    with pytest.raises(DataError, match="the same rows"):
        ratio.transfer_ratio(small, made(0.5, 0.6, requests=300), arm="tae")
    other = large.only([column for column in large.columns if column.arm != "tae" or column.seed])
    first = small.only([column for column in small.columns if not column.seed])
    with pytest.raises(DataError, match="common seed"):
        ratio.transfer_ratio(first, other, arm="tae")
