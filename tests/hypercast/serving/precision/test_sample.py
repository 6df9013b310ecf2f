"""Kernels are chosen by requests as they were asked, of windows that were over."""

import numpy as np
import pytest

from hypercast.serving.features.asked import OwnHistories
from hypercast.serving.precision.sample import EVENTS, as_asked, recent_requests
from streaming.errors import DataError
from streaming.history_check import history_check
from streaming.requests import Requests
from streaming.workspace import Workspace


def test_requests_are_the_last_before_the_watermark(workspace: Workspace) -> None:
    """Law L5: a choice that serves from a moment on knows nothing of what comes after it."""
    windows = workspace.dataset.windows
    for watermark in (windows[2].end, windows[3].end - 1):
        found = recent_requests(workspace, before=watermark, most=7)
        assert len(found) == 7
        assert found.time.max() < windows[2].end
        assert (found.time == workspace.requests(windows[2].index).time[-7:]).all()
    with pytest.raises(DataError, match="no request"):
        recent_requests(workspace, before=windows[0].end - 1, most=7)


def test_a_surface_has_its_own_and_later_windows_are_not_even_read(workspace: Workspace) -> None:
    windows, looked_at = workspace.dataset.windows, []

    def read(window: int) -> Requests:
        looked_at.append(window)
        requests = workspace.requests(window)
        # Surface 1 shows nothing in the window that would be the newest.
        return requests.on_surface(0) if window == windows[2].index else requests

    found = recent_requests(workspace, before=windows[3].end - 1, most=5, surface=1, read=read)
    assert looked_at == [windows[2].index, windows[1].index]
    assert set(found.surface) == {1}
    assert found.time.max() < windows[1].end
    with pytest.raises(DataError, match=f"on {workspace.dataset.config.surfaces[1]} before"):
        recent_requests(workspace, before=windows[2].end, most=5, surface=1, read=lambda window: found.slice(0, 0))


def test_they_are_asked_as_they_were_asked_then(workspace: Workspace) -> None:
    """Laws L1 and L6: with the histories that training materialises, and without an outcome."""
    stored = workspace.requests(3).slice(0, 20)
    asked = as_asked(workspace, stored)
    for name in ("request_id", "user", "time", "context", "offsets", "item", "surface", "dense"):
        np.testing.assert_array_equal(getattr(asked, name), getattr(stored, name))
    assert max(len(past.time) for past in asked.past) > 0
    assert all((past.time < time).all() for past, time in zip(asked.past, asked.time, strict=True))
    np.testing.assert_array_equal(
        history_check(OwnHistories.latest(asked, most=EVENTS), asked.user_id, asked.time),
        history_check(workspace.engagements, stored.user_id, stored.time),
    )
    assert stored.supervision.label.any()
    assert not asked.supervision.label.any()
    assert not asked.supervision.known(since=0, before=asked.supervision.NEVER).any()
