"""Coupon campaigns of Complete Journey as a log with late labels: a household gets a campaign, and redeems within W.

Reads ``DATASET/extra/{campaigns,campaign_descriptions,coupons,coupon_redemptions}.parquet`` and the engagement log of
the same data set. A request is a household that receives a campaign, at the midnight on which it starts; a redemption
is dated by day and known at the following midnight. Every feature is as of the request (law L5): what the campaign is,
who the household is, how many campaigns it had before, how often it redeemed, how much it bought in four weeks.
"""

from datetime import UTC, datetime

import numpy as np
import pandas as pd

from benchmarks.delayed_learner import DelayedLog
from streaming.dataset import Dataset, read_parquet
from streaming.labels.attribution import DAY, NEVER, attribute
from streaming.schema import TaskConfig, microseconds

WINDOW_DAYS = 28
STEP_DAYS = 7
BOUGHT_DAYS = 28
FIRST_EVALUATED = datetime(2017, 5, 1, tzinfo=UTC)
TYPES = ("Type A", "Type B", "Type C")
HOUSEHOLD = ["age", "income", "household_size", "kids_count"]


def read_coupons(dataset: Dataset) -> tuple[DelayedLog, np.ndarray]:
    """The log, and the household of each request.

    Raises:
        DataError: one of the files is missing.
    """
    tables = {
        name: read_parquet(dataset.path / "extra" / f"{name}.parquet").to_pandas()
        for name in ("campaigns", "campaign_descriptions", "coupons", "coupon_redemptions")
    }
    zone = dataset.config.window_boundaries[0].tzinfo
    first, last = (microseconds(dataset.config.window_boundaries[index]) for index in (0, -1))
    sent = tables["campaigns"].merge(tables["campaign_descriptions"], on="campaign_id")
    sent["time"] = _midnight(sent["start_date"], zone)
    sent = sent[(sent["time"] >= first) & (sent["time"] < last)]
    sent = sent.sort_values(["time", "campaign_id", "household_id"], ignore_index=True)
    redeemed = tables["coupon_redemptions"]
    redeemed["time"] = _midnight(redeemed["redemption_date"], zone) + DAY
    firsts = redeemed.groupby(["campaign_id", "household_id"], as_index=False)["time"].min()
    conversions = sent.merge(firsts, on=["campaign_id", "household_id"], how="left", suffixes=("", "_redeemed"))
    time_N = sent["time"].to_numpy()
    conversion_N = conversions["time_redeemed"].fillna(NEVER).astype(np.int64).to_numpy()
    # float64 cannot hold NEVER: what it rounds to is no time either.
    conversion_N = np.where(conversions["time_redeemed"].isna(), NEVER, conversion_N)
    label_N, known_N = attribute(time_C=time_N, conversion_C=conversion_N, window=WINDOW_DAYS * DAY)
    log = DelayedLog(
        task=TaskConfig(name="redeem", attribution_seconds=WINDOW_DAYS * 86_400),
        time_N=time_N,
        conversion_N=conversion_N,
        label_N=label_N,
        known_N=known_N,
        feature_NF=_features(dataset, sent, redeemed, tables["coupons"]),
        group_NG=np.stack([np.array([TYPES.index(kind) for kind in sent["campaign_type"]])], axis=1),
        boundaries=[*range(first, last, STEP_DAYS * DAY), last],
    )
    return log, sent["household_id"].to_numpy()


def evaluated(log: DelayedLog) -> np.ndarray:
    """Requests from May on, when a large campaign has been learned from, whose whole window lies within the log."""
    first = microseconds(FIRST_EVALUATED)
    return (log.time_N >= first) & (log.time_N + WINDOW_DAYS * DAY < log.boundaries[-1])


def _features(dataset: Dataset, sent: pd.DataFrame, redeemed: pd.DataFrame, coupons: pd.DataFrame) -> np.ndarray:
    """float32 ``[N, F]``."""
    household_N, time_N = sent["household_id"].to_numpy(), sent["time"].to_numpy()
    bought = pd.concat(
        [dataset.engagements(window.index).select(["user_id", "time"]).to_pandas() for window in dataset.windows]
    )
    bought_time = bought["time"].astype("int64").to_numpy()
    recent = _before(bought["user_id"].to_numpy(), bought_time, household_N, time_N)
    older = _before(bought["user_id"].to_numpy(), bought_time, household_N, time_N - BOUGHT_DAYS * DAY)
    redemptions = _before(redeemed["household_id"].to_numpy(), redeemed["time"].to_numpy(), household_N, time_N)
    campaigns = _before(household_N, time_N, household_N, time_N)
    offers = sent["campaign_id"].map(coupons.groupby("campaign_id").size()).fillna(0).to_numpy()
    days = (sent["end_date"] - sent["start_date"]).dt.days.to_numpy()
    known = [name for name in HOUSEHOLD if name in dataset.config.user_attributes]
    users = dataset.users().to_pandas().set_index("user_id")[known].reindex(household_N)
    columns = [
        *(sent["campaign_type"].to_numpy() == kind for kind in TYPES),
        np.log1p(offers) / 5,
        np.minimum(days, 60) / 30,
        np.log1p(redemptions),
        redemptions > 0,
        np.log1p(campaigns),
        np.log1p(recent - older) / 3,
        *(pd.get_dummies(users).to_numpy().T),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _before(key_E: np.ndarray, time_E: np.ndarray, key_N: np.ndarray, time_N: np.ndarray) -> np.ndarray:
    """How many of E events with the same key come strictly before each time, int64 ``[N]``."""
    # Both in one order of (key, time); an event at the same time comes after what asks.
    key = np.concatenate([key_E, key_N])
    asks = np.arange(len(key)) >= len(key_E)
    order = np.lexsort((~asks, np.concatenate([time_E, time_N]), key))
    seen = np.cumsum(~asks[order])
    count = np.empty(len(key), dtype=np.int64)
    count[order] = seen
    keys = np.sort(key_E)
    return count[asks] - np.searchsorted(keys, key_N)


def _midnight(dates: pd.Series, zone: object) -> pd.Series:
    """Microseconds UTC of the days' beginnings at the store."""
    return dates.dt.tz_localize(zone).dt.as_unit("us").astype("int64")
