"""How good a vector is at the moment it is read."""

from enum import IntEnum
from typing import Self

import numpy as np
import pydantic

from streaming.config import Config

DAY = 86_400.0
MICROSECONDS = 1_000_000


class Status(IntEnum):
    """FRESH and STALE vectors are used; EXPIRED and MISS read as zeros."""

    FRESH = 0
    STALE = 1
    EXPIRED = 2
    MISS = 3


class Freshness(Config):
    """Ages, in seconds, that part FRESH from STALE and STALE from EXPIRED."""

    fresh_for: float = pydantic.Field(default=8 * DAY, gt=0)
    ttl: float = pydantic.Field(default=60 * DAY, gt=0)

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.ttl < self.fresh_for:
            raise ValueError(f"ttl ({self.ttl} s) must not be less than fresh_for ({self.fresh_for} s)")
        return self

    def classify(self, age: np.ndarray) -> np.ndarray:
        """Status uint8 [N] of vectors that exist, from their age int64 [N] in microseconds. Bounds are inclusive."""
        status = np.full(age.shape, Status.FRESH, np.uint8)
        status[age > self.fresh_for * MICROSECONDS] = Status.STALE
        status[age > self.ttl * MICROSECONDS] = Status.EXPIRED
        return status


def count(status: np.ndarray) -> dict[str, int]:
    """How many of each, by name; all four are always there."""
    totals = np.bincount(status, minlength=len(Status))
    return {kind.name: int(totals[kind]) for kind in Status}
