"""Which conversions count, and when that is known.

A conversion counts if it comes within a task's attribution window W of the request. Whether one does is known at the
conversion, or at ``request + W`` if none has come. A label that is still open is a 0 with that later time: by law L2
nobody reads it before, and a conversion that comes in between replaces it. In a data set an open label may also be
null; :func:`closed` reads it so.

Shape legend: C candidates. Times are int64 microseconds; :data:`NEVER` stands for no conversion.
"""

import numpy as np
import numpy.typing as npt

from streaming.errors import ConfigError, DataError
from streaming.schema import TaskConfig

DAY = 86_400_000_000
"""Microseconds of a day."""

NEVER = int(np.iinfo(np.int64).max)
"""The time of what has not happened, as in :class:`streaming.requests.Supervision`."""

Int = npt.NDArray[np.int64]
Labels = tuple[npt.NDArray[np.float32], Int]
"""Labels float32 ``[C]``, and when each became known, int64 ``[C]``."""


def attribute(*, time_C: Int, conversion_C: Int, window: int) -> Labels:
    """Labels from the first conversion after each request.

    Args:
        time_C: of the requests.
        conversion_C: of the first conversion, as far as the log goes; :data:`NEVER` for none.
        window: W in microseconds. A conversion at ``request + W`` counts.

    Raises:
        DataError: a conversion comes before its request.
    """
    early = np.flatnonzero(conversion_C < time_C)
    if len(early):
        row = early[0]
        raise DataError(
            f"candidate {row}: its conversion at {_stamp(conversion_C[row])} is earlier than its request at "
            f"{_stamp(time_C[row])}. Match each conversion with a request before it."
        )
    converted = converts(time_C=time_C, conversion_C=conversion_C, window=window)
    return converted.astype(np.float32), np.where(converted, conversion_C, time_C + window)


def converts(*, time_C: Int, conversion_C: Int, window: int) -> npt.NDArray[np.bool_]:
    """Whether a conversion comes within ``window`` of the request, bool ``[C]``."""
    return (conversion_C != NEVER) & (conversion_C - time_C <= window)


def conversions(label_C: npt.NDArray[np.float32], known_C: Int) -> Int:
    """The conversions behind labels of :func:`attribute`: time int64 ``[C]``, :data:`NEVER` where none counts."""
    return np.where((label_C == 1) & (known_C != NEVER), known_C, NEVER)


def closed(task: TaskConfig, *, time_C: Int, label_C: npt.NDArray[np.float32], known_C: Int) -> Labels:
    """Stored labels, of which those that are not known are known to be 0 when the attribution window has passed.

    Only of a task that declares a window. Where the task is given another one, no label means that it has no outcome.
    """
    if task.attribution_seconds is None or task.given is not None:
        return label_C, known_C
    return label_C, np.where(known_C == NEVER, time_C + window_of(task), known_C)


def window_of(task: TaskConfig) -> int:
    """The task's attribution window in microseconds.

    Raises:
        ConfigError: it declares none.
    """
    if task.attribution_seconds is None:
        raise ConfigError(
            f"task {task.name} declares no attribution window. Set attribution_seconds in dataset.yaml, for example "
            "1209600 for 14 days."
        )
    return round(task.attribution_seconds * 1_000_000)


def _stamp(time: np.int64) -> np.datetime64:
    return np.datetime64(int(time), "us")
