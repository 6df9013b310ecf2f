"""The measurement of late labels: its world obeys its law, and its learner sees no future (laws L2, L4)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import delayed
from benchmarks.delayed_coupons import evaluated, read_coupons
from benchmarks.delayed_learner import DelayedLog, Reading, Recipe, normalised_entropy, prequential
from benchmarks.delayed_world import WINDOW_DAYS, DelayedWorld
from streaming.dataset import Dataset
from streaming.importers.synthetic import FIRST_USER
from streaming.labels.attribution import DAY, NEVER, attribute, converts
from streaming.labels.policy import FakeNegative, Interpolation, LabelPolicy, Wait

WHOLE = Reading(WINDOW_DAYS)
POLICIES: list[LabelPolicy] = [
    Wait(),
    Wait(early_positives=False),
    FakeNegative(),
    FakeNegative(correction="calibrated"),
    Interpolation(),
    Interpolation(windows_days=[1.0, 3.0], tail="curve"),
]


@pytest.fixture(scope="module")
def world() -> DelayedWorld:
    return DelayedWorld.draw(0, per_day=20, days=24)


def test_the_world_is_as_it_says(world: DelayedWorld) -> None:
    large = DelayedWorld.draw(1, per_day=3000, days=10)
    for days in (1, 5, 14):
        happened = converts(time_C=large.log.time_N, conversion_C=large.log.conversion_N, window=days * DAY)
        assert happened.mean() == pytest.approx(large.within(days * DAY).mean(), rel=0.05)
    again = DelayedWorld.draw(0, per_day=20, days=24)
    assert (again.log.conversion_N == world.log.conversion_N).all()
    assert (np.diff(world.log.time_N) >= 0).all()


def other_future(log: DelayedLog, now: int) -> DelayedLog:
    """The same log up to ``now``: from then on everybody converts who had not, and nobody who had."""
    late = np.maximum(log.time_N, now) + DAY // 2
    conversion_N = np.where(log.conversion_N < now, log.conversion_N, np.where(log.conversion_N == NEVER, late, NEVER))
    label_N, known_N = attribute(time_C=log.time_N, conversion_C=conversion_N, window=WINDOW_DAYS * DAY)
    return replace(log, conversion_N=conversion_N, label_N=label_N, known_N=known_N)


@pytest.mark.parametrize("refit_steps", [0, 2])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_future_changes_no_prediction(world: DelayedWorld, policy: LabelPolicy, refit_steps: int) -> None:
    now = 20 * DAY
    recipe = Recipe(policy=policy, asked_days=(2.0,), batch_size=64, refit_steps=refit_steps, hidden=0)
    first, second = (prequential(log, recipe) for log in (world.log, other_future(world.log, now)))
    before = world.log.time_N < now + DAY  # the day that begins then is predicted by what was known at its start
    for reading, said in first.items():
        assert np.isfinite(said).all()
        assert (said[before] == second[reading][before]).all(), reading
        assert (said[~before] != second[reading][~before]).any(), reading


@pytest.mark.slow
def test_a_report_has_every_policy() -> None:
    values = delayed.generated(seeds=(0, 1), per_day=20)
    for name in (*delayed.PLAIN, "interpolation", "interpolation_curve"):
        for key in ("ne", "bias_pct"):
            for prefix in ("", "shift."):
                value, low, high = (values[f"{prefix}{name}.{key}{end}"] for end in ("", "_min", "_max"))
                assert low <= value <= high
    assert values["truth.ne"] < values["instant.ne_min"]
    assert values["interpolation.window_5d.error_pct"] <= values["interpolation.window_5d.segment_error_pct"]


def test_normalised_entropy_of_the_base_rate_is_one() -> None:
    label = np.array([1.0, 0.0, 0.0, 0.0])
    assert normalised_entropy(np.full(4, 0.25), label) == pytest.approx(1.0)
    assert normalised_entropy(np.array([0.9, 0.1, 0.1, 0.1]), label) < 0.5


@pytest.fixture
def coupons(tiny_dataset: Dataset, tmp_path: Path) -> Dataset:
    """Two campaigns of the synthetic data set's users in 2024, the second with a household that redeems twice."""

    def write(name: str, **columns: object) -> None:
        pq.write_table(pa.table(columns), tmp_path / "extra" / f"{name}.parquet")

    def dates(*days: str) -> np.ndarray:
        return np.array(days, dtype="datetime64[ns]")

    (tmp_path / "extra").mkdir()
    for path in tiny_dataset.path.iterdir():
        (tmp_path / path.name).symlink_to(path)
    user = FIRST_USER + np.arange(3)
    write("campaigns", campaign_id=np.repeat([1, 2], 3), household_id=np.concatenate([user, user]))
    write(
        "campaign_descriptions",
        campaign_id=[1, 2],
        campaign_type=["Type A", "Type B"],
        start_date=dates("2024-01-03", "2024-01-10"),
        end_date=dates("2024-02-01", "2024-03-01"),
    )
    write("coupons", coupon_upc=[1, 2, 3], product_id=[1, 2, 3], campaign_id=[1, 1, 2])
    write(
        "coupon_redemptions",
        household_id=user[[0, 1, 1, 1]],
        coupon_upc=[1, 3, 3, 1],
        campaign_id=[1, 2, 2, 1],
        redemption_date=dates("2024-01-05", "2024-01-20", "2024-01-12", "2024-02-20"),
    )
    return Dataset.open(tmp_path)


def test_coupons_are_known_by_the_day_after_and_features_by_the_day_before(coupons: Dataset) -> None:
    log, household_N = read_coupons(coupons)
    midnight = np.datetime64("2024-01-01", "us").astype(np.int64)
    assert ((log.time_N - midnight) // DAY).tolist() == [2, 2, 2, 9, 9, 9]
    assert household_N.tolist() == [FIRST_USER, FIRST_USER + 1, FIRST_USER + 2] * 2
    assert log.label_N.tolist() == [1, 0, 0, 0, 1, 0]  # a redemption after 28 days does not count
    assert ((log.known_N - log.time_N) // DAY).tolist() == [3, 28, 28, 28, 3, 28]  # the first of two redemptions
    redeemed, campaigns = log.feature_NF[:, 6], log.feature_NF[:, 7]
    assert redeemed.tolist() == [0, 0, 0, 1, 0, 0]
    assert campaigns == pytest.approx(np.log1p([0, 0, 0, 1, 1, 1]))
    log_of_all = pa.concat_tables([coupons.engagements(window.index) for window in coupons.windows])
    bought, users = log_of_all["time"].cast(pa.int64()).to_numpy(), log_of_all["user_id"].to_numpy()
    for row, (household, time) in enumerate(zip(household_N, log.time_N, strict=True)):
        own = bought[users == household]
        count = ((own < time) & (own >= time - 28 * DAY)).sum()
        assert log.feature_NF[row, 8] == pytest.approx(np.log1p(count) / 3)
    assert evaluated(log).all()
    assert evaluated(replace(log, boundaries=[*log.boundaries[:-1], int(log.time_N[3]) + 28 * DAY])).sum() == 3
