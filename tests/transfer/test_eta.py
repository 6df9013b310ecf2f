"""Eta against its definition, and where it has none."""

import pytest

from transfer import eta, sums


def test_it_is_the_share_of_the_advantage(make_table) -> None:
    each = sums.accumulate(make_table(), task="buy")
    found, ne = eta.etas(each), each.mean_by_arm("ne")
    assert found.keys() == {"tae", "logit_residual", "treated"}
    for arm, value in found.items():
        assert value == pytest.approx((ne["control"] - ne[arm]) / (ne["control"] - ne["fm_head"]))
    assert found["treated"] > 1 > found["logit_residual"] > 0


@pytest.mark.parametrize("head", [1.0, 1.5])
def test_it_is_undefined_where_the_teacher_is_not_ahead_by_more_than_the_floor(make_table, head: float) -> None:
    noise = {"control": 1.0, "treated": 0.3, "fm_head": head}
    assert eta.etas(sums.accumulate(make_table(noise=noise, seeds=1 if head > 1 else 3), task="buy")) == {}


def test_a_fall_within_the_noise_floor_is_none(make_table) -> None:
    each = sums.accumulate(make_table(noise={"control": 1.0, "treated": 0.3, "fm_head": 0.8}), task="buy")
    assert eta.etas(each)
    loss = each.loss.copy()
    for a, column in enumerate(each.columns):
        if column.arm == "control":  # two seeds that differ by far more than the teacher is ahead
            loss[:, a] *= 1 + 0.5 * (-1) ** column.seed
    assert eta.etas(sums.UserSums(**{**vars(each), "loss": loss})) == {}


def test_it_takes_a_control_and_a_teacher(make_table) -> None:
    for missing in ("control", "fm_head"):
        noise = {arm: value for arm, value in {"control": 1.0, "tae": 0.5, "fm_head": 0.6}.items() if arm != missing}
        assert eta.etas(sums.accumulate(make_table(noise=noise), task="buy")) == {}


def test_an_arm_that_takes_nothing_of_the_teacher_keeps_nothing(make_table) -> None:
    noise = {"control": 1.0, "c2al": 0.9, "tae_c2al": 0.5, "fm_head": 0.6}
    assert eta.etas(sums.accumulate(make_table(noise=noise), task="buy")).keys() == {"tae_c2al"}
