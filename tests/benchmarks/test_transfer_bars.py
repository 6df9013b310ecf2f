"""What counts as ahead."""

import pytest

from benchmarks import transfer_bars
from tests.transfer.conftest import _make_table as make_table
from transfer import gain, sums
from transfer.sums import UserSums


@pytest.fixture(scope="module")
def home() -> UserSums:
    return sums.accumulate(make_table(noise={"control": 1.0, "tae": 0.5}, seeds=3), task="buy")


def figures(each: UserSums) -> dict[str, float]:
    return transfer_bars.figures({"home": each}, modes={"tae_best": "tae"}, prefix="", replicates=100)


def test_a_surface_within_the_noise_floor_is_not_ahead(home: UserSums) -> None:
    assert figures(home)["tae_best_vs_control_surfaces_ahead"] == 1
    loss = home.loss.copy()
    for a, column in enumerate(home.columns):
        loss[:, a] *= 1 + 0.4 * column.seed  # seeds apart by more than the gain, which each pair has as before
    noisy = figures(UserSums(**{**vars(home), "loss": loss}))
    assert noisy["home.tae_best.gain_lo"] > 0
    assert noisy["home.tae_best.gain_pct"] < noisy["noise_floor_pct"]
    assert noisy["tae_best_vs_control_surfaces_ahead"] == 0


def test_no_reference_is_chosen_as_a_mode() -> None:
    noise = {"control": 1.0, "treated": 0.5} | dict.fromkeys(transfer_bars.REFERENCES[1:], 0.1)
    best = sums.accumulate(make_table(noise=noise, seeds=1), task="buy")
    assert transfer_bars.choose({"home": best}) == {"expert_best": "treated"}
    assert set(gain.TRAINED_ONCE) <= set(transfer_bars.REFERENCES)
    found = figures(best)
    assert found["home.lightgbm_treated_vs_lightgbm_lo"] <= found["home.lightgbm_treated_vs_lightgbm_pct"]
