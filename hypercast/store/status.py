"""How good a vector is at the moment it is read."""

from enum import IntEnum
from functools import lru_cache
from typing import Self

import numpy as np
import pydantic

from streaming.config import Config

DAY = 86_400.0
MICROSECONDS = 1_000_000
_LONGEST = int(np.iinfo(np.int64).max)


class Status(IntEnum):
    """FRESH and STALE vectors are used; EXPIRED and MISS read as zeros."""

    FRESH = 0
    STALE = 1
    EXPIRED = 2
    MISS = 3


class Freshness(Config):
    """Ages, in seconds, that part FRESH from STALE and STALE from EXPIRED.

    With 0 for both, a vector is FRESH in the microsecond that it was computed in, and EXPIRED ever after.
    """

    fresh_for: float = pydantic.Field(default=8 * DAY, ge=0, allow_inf_nan=False)
    ttl: float = pydantic.Field(default=60 * DAY, ge=0, allow_inf_nan=False)

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.ttl < self.fresh_for:
            raise ValueError(f"ttl ({self.ttl} s) must not be less than fresh_for ({self.fresh_for} s)")
        return self

    def classify(self, age: np.ndarray) -> np.ndarray:
        """Status uint8 [N] of vectors that exist, from their age int64 [N] in microseconds. Bounds are inclusive."""
        fresh_for, ttl = _microseconds(self.fresh_for), _microseconds(self.ttl)
        status = (age > fresh_for).view(np.uint8)  # FRESH or STALE
        status += age > ttl
        return status


@lru_cache
def _microseconds(seconds: float) -> int:
    return min(int(seconds * MICROSECONDS), _LONGEST)


def count(status: np.ndarray) -> dict[str, int]:
    """How many of each, by name; all four are always there."""
    totals = np.bincount(status, minlength=len(Status))
    return {kind.name: int(totals[kind]) for kind in Status}
