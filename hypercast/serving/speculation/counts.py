"""Sums by key, and how to look them up: what all statistics of the past are made of.

Shape legend: E events, N keys that are looked up.
"""

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


class Sums:
    """The sum of the weights of each key's events.

    Args:
        key: int64 ``[E]``.
        weight: float64 ``[E]``.
    """

    def __init__(self, key: Int, weight: Float) -> None:
        self.key, place = np.unique(key, return_inverse=True)
        self.total = np.bincount(place, weights=weight, minlength=len(self.key))

    def of(self, key: Int) -> Float:
        """The sums of ``key`` ``[N]``, float64 ``[N]``; 0 for a key without events."""
        at, known = find(self.key, key)
        return np.where(known, np.append(self.total, 0.0)[at], 0.0)


def find(table: Int, key: Int) -> tuple[Int, npt.NDArray[np.bool_]]:
    """Where each of ``key`` ``[N]`` stands in ``table``, which ascends and repeats nothing, and whether it does."""
    at = np.searchsorted(table, key)
    known = at < len(table)
    known[known] = table[at[known]] == key[known]
    return at, known


def decayed(age: Int, scale: int) -> Float:
    """``exp(-age / scale)`` of ages in microseconds."""
    return np.exp(-age / scale)
