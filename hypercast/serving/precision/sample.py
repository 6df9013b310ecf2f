"""Requests that kernels are chosen by: the last ones that the models have learned from.

Of requests that are still to come a choice must know nothing, and what the models have learned from is the latest of
which that is certain. It reads what was asked and what was known then; labels it does not read at all.

Shape legend: B requests.
"""

from collections.abc import Callable
from dataclasses import fields

import numpy as np

from hypercast.serving.features.asked import Asked, no_outcome
from streaming.errors import DataError
from streaming.history import Events
from streaming.requests import Requests
from streaming.workspace import Workspace

EVENTS = 1 << 15
"""Engagements of a user that are looked back on, at most."""


def recent_requests(
    workspace: Workspace,
    *,
    before: int,
    most: int,
    surface: int | None = None,
    read: Callable[[int], Requests] | None = None,
) -> Requests:
    """The last ``most`` requests of the last window with any that ended by ``before`` (microseconds).

    Args:
        surface: index; requests with candidates there, and those alone. None for all.
        read: requests of a window; None reads the data set.

    Raises:
        DataError: there is none.
    """
    read = workspace.requests if read is None else read
    for window in reversed(workspace.dataset.windows):
        if window.end <= before:
            made = read(window.index)
            if surface is not None:
                made = made.on_surface(surface)
            if len(made):
                return made.slice(max(0, len(made) - most), len(made))
    where = "" if surface is None else f" on {workspace.dataset.config.surfaces[surface]}"
    raise DataError(
        f"{workspace.dataset.path}: no request was made{where} before {before}, by which kernels could be chosen"
    )


def as_asked(workspace: Workspace, requests: Requests) -> Asked:
    """Stored requests as a service is asked them: with what each user had done strictly before (law L1), no outcome."""
    start_B, end_B = workspace.engagements.spans(requests.user_id, requests.time, max_length=EVENTS)
    past = tuple(_events(workspace, start_B[[row]], end_B[[row]]) for row in range(len(requests)))
    known = {field.name: getattr(requests, field.name) for field in fields(Requests)}
    outcome = no_outcome(len(requests.item), len(workspace.inputs.tasks))
    return Asked(**{**known, "supervision": outcome, "past": past})


def _events(workspace: Workspace, start: np.ndarray, end: np.ndarray) -> Events:
    return workspace.engagements.take(start, end)
