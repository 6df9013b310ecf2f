"""Timing things against one another: in turn, in one process, with the spread."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def in_turn(rounds: int, **contestants: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one round to warm up. A round runs every one once, in order."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant()
    for _ in range(rounds):
        for name, contestant in contestants.items():
            begun = time.perf_counter()
            contestant()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def spread(key: str, values: list[float], digits: int = 3) -> dict[str, float]:
    """``key`` (the median), ``key_min`` and ``key_max``."""
    return {
        key: round(statistics.median(values), digits),
        f"{key}_min": round(min(values), digits),
        f"{key}_max": round(max(values), digits),
    }


def ratios(key: str, slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times faster the second was, round by round."""
    return spread(key, [a / b for a, b in zip(slow, fast, strict=True)])
