"""Requests whose conversions follow a known law: how likely, how late, and a day on which it changes.

A request converts with probability sigmoid(w x + b), after a Weibull delay whose scale is its segment's. On the day of
the shift the rate rises and the sign of one weight turns. The probability of a conversion within any window is then
known exactly, and predictions are held against it, not against the luck of labels.

Shape legend: N requests, F features, S segments.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.delayed_learner import DelayedLog
from streaming.labels.attribution import DAY, NEVER, attribute
from streaming.schema import TaskConfig

DAYS = 90
SHIFT_DAY = 60
PER_DAY = 8000
WINDOW_DAYS = 14
FEATURES = 8
SCALE_DAYS_S = np.array([0.8, 2.0, 4.0, 8.0])
SHAPE = 0.7


@dataclass(frozen=True, kw_only=True)
class DelayedWorld:
    """A log and its law: ``converts_N``, whether ever, in probability, and each request's segment and day."""

    log: DelayedLog
    converts_N: np.ndarray
    segment_N: np.ndarray
    day_N: np.ndarray

    @staticmethod
    def draw(seed: int, *, per_day: int = PER_DAY, days: int = DAYS) -> "DelayedWorld":
        """The same world for the same arguments."""
        random = np.random.default_rng([seed, 2017])
        count = per_day * days
        time_N = np.sort(random.integers(0, days * DAY, count))
        day_N = time_N // DAY
        feature_NF = random.standard_normal((count, FEATURES))
        segment_N = random.integers(0, len(SCALE_DAYS_S), count)
        weight_F = random.standard_normal(FEATURES) * 0.35
        shifted_F = weight_F * np.where(np.arange(FEATURES) == np.abs(weight_F).argmax(), -1, 1)
        after_N = day_N >= SHIFT_DAY
        score_N = np.where(after_N, feature_NF @ shifted_F + 0.6, feature_NF @ weight_F) + 0.2 * segment_N - 2.1
        converts_N = 1 / (1 + np.exp(-score_N))
        delay_N = SCALE_DAYS_S[segment_N] * random.weibull(SHAPE, count) * DAY
        conversion_N = np.where(random.random(count) < converts_N, time_N + delay_N.astype(np.int64), NEVER)
        label_N, known_N = attribute(time_C=time_N, conversion_C=conversion_N, window=WINDOW_DAYS * DAY)
        log = DelayedLog(
            task=TaskConfig(name="convert", attribution_seconds=WINDOW_DAYS * 86_400),
            time_N=time_N,
            conversion_N=conversion_N,
            label_N=label_N,
            known_N=known_N,
            feature_NF=np.concatenate([feature_NF, np.eye(len(SCALE_DAYS_S))[segment_N]], axis=1).astype(np.float32),
            group_NG=segment_N[:, None],
            boundaries=[day * DAY for day in range(days + 1)],
        )
        return DelayedWorld(log=log, converts_N=converts_N, segment_N=segment_N, day_N=day_N)

    def within(self, window: int) -> np.ndarray:
        """The true probability of a conversion within ``window`` microseconds, float64 ``[N]``."""
        return self.converts_N * (1 - np.exp(-((window / DAY / SCALE_DAYS_S[self.segment_N]) ** SHAPE)))
