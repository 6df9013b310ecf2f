"""What counts as a conversion, and when that is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import DataError
from streaming.labels.attribution import NEVER, attribute, conversions
from streaming.schema import TaskConfig

# (time of the request, delay of its conversion)
ROWS = st.lists(st.tuples(st.integers(0, 50), st.one_of(st.just(None), st.integers(0, 30))), max_size=12)


def arrays(rows: list[tuple[int, int | None]]) -> tuple[np.ndarray, np.ndarray]:
    time_C = np.array([time for time, _ in rows], dtype=np.int64)
    return time_C, np.array([NEVER if delay is None else time + delay for time, delay in rows], dtype=np.int64)


@given(ROWS, st.integers(1, 20))
def test_labels_and_when_they_are_known(rows: list[tuple[int, int | None]], window: int) -> None:
    time_C, conversion_C = arrays(rows)
    label_C, known_C = attribute(time_C=time_C, conversion_C=conversion_C, window=window)
    for (time, delay), label, known in zip(rows, label_C.tolist(), known_C.tolist(), strict=True):
        counts = delay is not None and delay <= window
        assert label == counts
        assert known == (time + delay if counts and delay is not None else time + window)
    found = conversions(label_C, known_C)
    assert ((found != NEVER) == (label_C == 1)).all() and (found[label_C == 1] == conversion_C[label_C == 1]).all()


def test_a_conversion_at_the_end_of_the_window_counts_and_one_after_it_does_not() -> None:
    label_C, known_C = attribute(time_C=np.array([5, 5]), conversion_C=np.array([15, 16]), window=10)
    assert label_C.tolist() == [1, 0] and known_C.tolist() == [15, 15]


def test_a_label_that_is_never_known_hides_no_conversion() -> None:
    assert conversions(np.array([0, 1], dtype=np.float32), np.array([NEVER, NEVER])).tolist() == [NEVER, NEVER]


def test_a_conversion_before_its_request_is_refused() -> None:
    with pytest.raises(DataError, match=r"candidate 1: its conversion at .* is earlier than its request"):
        attribute(time_C=np.array([5, 5]), conversion_C=np.array([6, 4]), window=10)


def test_a_task_with_a_window_has_its_delay() -> None:
    assert TaskConfig(name="buy", attribution_seconds=60).delay_seconds == 60
    assert TaskConfig(name="buy", attribution_seconds=60, delay_seconds=90).delay_seconds == 90
    assert TaskConfig(name="buy").attribution_seconds is None
    with pytest.raises(ValueError, match=r"delay_seconds \(30\) must be at least that"):
        TaskConfig(name="buy", attribution_seconds=60, delay_seconds=30)
