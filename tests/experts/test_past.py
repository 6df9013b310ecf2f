"""Past embeddings are a loop over the user's earlier windows: never its own, never one whose labels may be unknown."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.past import PastEmbeddings, UserTotals
from experts.teacher import TeacherReader
from hypercast.pins import Pin
from hypercast.store.embeddings import Embeddings
from hypercast.store.status import Status
from hypercast.store.tae_log import TaeLog
from streaming.importers.synthetic import Synthetic
from streaming.requests import Requests
from streaming.workspace import Workspace

WIDTH = 3
DAYS = 86_400.0


class Log:
    """Random vectors by window, some of them absent; remembers what was asked for."""

    def __init__(self, workspace: Workspace) -> None:
        self.asked: list[int] = []
        self.held: dict[int, Embeddings] = {}
        random = np.random.default_rng(0)
        for window in workspace.dataset.windows:
            rows = len(workspace.requests(window.index).item)
            found = Embeddings.missing(rows, width=WIDTH, tasks=2)
            found.status[random.random(rows) < 0.8] = Status.FRESH
            found.vector[found.present] = random.normal(size=(int(found.present.sum()), WIDTH))
            self.held[window.index] = found

    def read(self, window: int, requests: Requests) -> Embeddings:
        self.asked.append(window)
        return self.held[window]


def past(workspace: Workspace, log: Log, windows: int = 8) -> PastEmbeddings:
    config = PastEmbeddings.Config(windows=windows)
    return PastEmbeddings(config=config, workspace=workspace, width=WIDTH, read=log.read)


def naive(workspace: Workspace, log: Log, requests: Requests, windows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    vectors, present = [], []
    asked = {window: workspace.requests(window) for window in windows}
    for user in requests.user_id[requests.owner].tolist():
        own: list[np.ndarray] = []
        for window, there in asked.items():
            mine = (there.user_id[there.owner] == user) & log.held[window].present
            own.extend(log.held[window].vector[mine])
        vectors.append(np.mean(own, axis=0) if own else np.zeros(WIDTH))
        present.append(float(bool(own)))
    return np.array(vectors), np.array(present)


@pytest.mark.parametrize(
    ("window", "limit", "expected"), [(0, 8, []), (1, 8, [0]), (4, 8, [0, 1, 2, 3]), (4, 2, [2, 3])]
)
def test_equal_to_a_loop(workspace: Workspace, window: int, limit: int, expected: list[int]) -> None:
    log, windows = Log(workspace), [each.index for each in workspace.dataset.windows]
    requests = workspace.requests(windows[window]).on_surface(1)
    found = past(workspace, log, limit).of(windows[window], requests)
    pooled = [windows[place] for place in expected]
    assert log.asked == pooled
    vector, present = naive(workspace, log, requests, pooled)
    np.testing.assert_allclose(found.vector_CR.numpy(), vector, rtol=1e-5, atol=1e-6)
    assert found.present_C.tolist() == present.tolist()
    assert bool(found.present_C.any()) == bool(expected)


def test_the_windows_own_and_later_rows_change_nothing(workspace: Workspace) -> None:
    window = workspace.dataset.windows[3].index
    requests, log, other = workspace.requests(window), Log(workspace), Log(workspace)
    for index, held in other.held.items():
        if index >= window:
            held.vector[:] = 7.0
    before, after = past(workspace, log).of(window, requests), past(workspace, other).of(window, requests)
    assert after.vector_CR.equal(before.vector_CR) and after.present_C.equal(before.present_C)
    other.held[window - 1].vector[:] = 7.0
    assert not past(workspace, other).of(window, requests).vector_CR.equal(before.vector_CR)


def test_a_window_is_read_once_as_long_as_it_is_needed(workspace: Workspace) -> None:
    log = Log(workspace)
    made = past(workspace, log, windows=2)
    windows = [window.index for window in workspace.dataset.windows]
    for window in windows:
        for _ in range(2):
            made.of(window, workspace.requests(window))
    assert log.asked == windows[:-1]
    fresh = past(workspace, Log(workspace), windows=2)
    requests = workspace.requests(windows[-1])
    assert fresh.of(windows[-1], requests).vector_CR.equal(made.of(windows[-1], requests).vector_CR)


@pytest.mark.parametrize(("days", "expected"), [(0, 4), (0.5, 3), (7, 3), (7.5, 2), (40, 0)])
def test_a_window_counts_once_all_its_labels_are_known(days: float, expected: int, tmp_path: Path) -> None:
    """Which candidates a window has depends on their labels (law L2)."""
    config = Synthetic.Config(users=4, items=12, windows=5, candidates=3, label_delay_seconds=days * DAYS)
    workspace = Workspace(config.build(tmp_path / "data"))
    windows = [window.index for window in workspace.dataset.windows]
    assert past(workspace, Log(workspace)).windows_before(windows[4]) == windows[:expected]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), max_size=20), st.lists(st.integers(0, 7), max_size=6))
def test_totals_are_sums_by_user(rows: list[tuple[int, int]], asked: list[int]) -> None:
    user = np.array([user for user, _ in rows], dtype=np.int64)
    vector = np.array([[value, 1.0] for _, value in rows], dtype=np.float32).reshape(-1, 2)
    total, count = np.zeros((len(asked), 2)), np.zeros(len(asked), np.int64)
    UserTotals.of(user, vector).add_to(total, count, np.array(asked, dtype=np.int64))
    for place, one in enumerate(asked):
        own = [value for of, value in rows if of == one]
        assert total[place].tolist() == [sum(own), len(own)]
        assert count[place] == len(own)


def test_it_is_read_from_the_log(workspace: Workspace, log: TaeLog, embedding: int) -> None:
    reader = TeacherReader(
        log=log,
        pin=Pin(expert="surface_1", lineage="FM"),
        workspace=workspace,
        widths={"past": embedding},
        past=PastEmbeddings.Config(),
        delay=0,
    )
    first, second, third = (window.index for window in workspace.dataset.windows[:3])
    requests = workspace.requests(third).on_surface(1)
    told = reader.read(third, requests).features.vectors["past"]
    user = int(requests.user_id[0])
    own = []
    for window in (first, second):
        asked = workspace.requests(window)
        segment = log.segment(f"FM@{window:04d}", window)
        own.append(segment.vectors("penultimate", slice(None))[asked.user_id[asked.owner] == user])
    np.testing.assert_allclose(told.vector_CR[0].numpy(), np.concatenate(own).mean(axis=0), rtol=1e-4, atol=1e-6)
    assert not reader.read(first, workspace.requests(first)).features.vectors["past"].present_C.any()
