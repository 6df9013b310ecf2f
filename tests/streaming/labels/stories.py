"""Logs of conversions, and what can still change in them."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from streaming.labels.attribution import NEVER, attribute
from streaming.requests import Supervision
from streaming.schema import TaskConfig

WINDOW = 20_000_000
TASK = TaskConfig(name="buy", attribution_seconds=WINDOW / 1e6)
SECOND = 1_000_000


@dataclass(frozen=True)
class Story:
    """Requests, their conversions, and another future: the same up to ``now``, anything from then on."""

    time_C: np.ndarray
    conversion_C: np.ndarray
    other_C: np.ndarray
    now: int


# A request's time and, in half seconds, the delay of its conversion, in this future and in another: some meet the ends
# of windows exactly, some do not.
_DELAY = st.one_of(st.none(), st.integers(0, 60))
_ROWS = st.lists(st.tuples(st.integers(0, 60), _DELAY, _DELAY), min_size=1, max_size=8)


@st.composite
def stories(draw: st.DrawFn) -> Story:
    now, rows = draw(st.integers(0, 60)) * SECOND, draw(_ROWS)
    time_C = np.array([time for time, _, _ in rows], dtype=np.int64) * SECOND
    conversion_C, other_C = (
        np.array(
            [NEVER if row[of] is None else row[0] * SECOND + row[of] * SECOND // 2 for row in rows], dtype=np.int64
        )
        for of in (1, 2)
    )
    other_C = np.where(conversion_C < now, conversion_C, np.where(other_C < now, NEVER, other_C))
    return Story(time_C=time_C, conversion_C=conversion_C, other_C=other_C, now=now)


def stored(time_C: np.ndarray, conversion_C: np.ndarray, *, window: int = WINDOW) -> Supervision:
    """Supervision ``[C, 1]`` as a data set holds it."""
    label_C, known_C = attribute(time_C=time_C, conversion_C=conversion_C, window=window)
    return Supervision(
        label=label_C[:, None],
        known_time=known_C[:, None],
        weight=np.ones(len(time_C), dtype=np.float32),
        stratum=np.zeros(len(time_C), dtype=np.int8),
    )
