"""Which ids give way in a bounded table. A policy is one number a slot, its priority; the lowest leave first.

Shape legend: S slots that a batch looks up.
"""

from typing import Annotated, Literal, NamedTuple

import numpy as np
import pydantic

from streaming.config import Config as BaseConfig

DAY = 86_400 * 1_000_000
"""In microseconds."""

NOTHING = -np.inf
"""Priority of a slot that was never looked up."""


class Clock(NamedTuple):
    """How far training has come: ``step``, batches so far; ``time``, the latest event time in them (microseconds)."""

    step: int
    time: int


class LeastRecent:
    """The ids unseen for most batches give way. Priority: the batch an id was last seen in."""

    class Config(BaseConfig):
        """``{policy: lru}``."""

        policy: Literal["lru"] = "lru"

        def build(self) -> "LeastRecent":
            return LeastRecent()

    def priority(self, before_S: np.ndarray, clock: Clock) -> np.ndarray:
        """Priorities, float64, of slots looked up now that had ``before_S``."""
        return np.full(len(before_S), float(clock.step))

    def floor(self, clock: Clock) -> float:
        """Slots of lower priority are given up even when there is room."""
        return NOTHING


class LeastFrequent:
    """The ids seen in the fewest batches give way; what was seen ``half_life_days`` earlier counts half.

    Priority: log2 of the sum of 2^(t / half-life) over the event times t of those batches. It orders ids at every later
    time as their decayed counts do, so that nothing has to be updated as time passes (forward decay, Cormode et al.,
    ICDE 2009). Ids that are new always find room at the cost of those not in their batch, of equal ones the older.
    """

    class Config(BaseConfig):
        """``{policy: lfu}``. Attributes: ``half_life_days`` of event time."""

        policy: Literal["lfu"] = "lfu"
        half_life_days: float = pydantic.Field(default=28.0, gt=0)

        def build(self) -> "LeastFrequent":
            return LeastFrequent(half_life_days=self.half_life_days)

    def __init__(self, *, half_life_days: float) -> None:
        self.half_life = half_life_days * DAY

    def priority(self, before_S: np.ndarray, clock: Clock) -> np.ndarray:
        """Priorities, float64, of slots looked up now that had ``before_S``."""
        return np.logaddexp2(before_S, clock.time / self.half_life)

    def floor(self, clock: Clock) -> float:
        """Slots of lower priority are given up even when there is room."""
        return NOTHING


class TimeToLive:
    """Ids unseen for more than ``days`` of event time expire; in a full table those unseen for longest give way before.

    Priority: the event time an id was last seen at.
    """

    class Config(BaseConfig):
        """``{policy: ttl}``. Attributes: ``days`` of event time."""

        policy: Literal["ttl"] = "ttl"
        days: float = pydantic.Field(default=90.0, gt=0)

        def build(self) -> "TimeToLive":
            return TimeToLive(days=self.days)

    def __init__(self, *, days: float) -> None:
        self.time_to_live = days * DAY

    def priority(self, before_S: np.ndarray, clock: Clock) -> np.ndarray:
        """Priorities, float64, of slots looked up now that had ``before_S``."""
        return np.full(len(before_S), float(clock.time))

    def floor(self, clock: Clock) -> float:
        """Slots of lower priority are given up even when there is room."""
        return clock.time - self.time_to_live


Eviction = LeastRecent | LeastFrequent | TimeToLive

EvictionConfig = Annotated[
    LeastRecent.Config | LeastFrequent.Config | TimeToLive.Config, pydantic.Field(discriminator="policy")
]
