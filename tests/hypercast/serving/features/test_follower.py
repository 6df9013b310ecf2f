"""A state that follows a stream says of every request what training makes of the same stream."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.stream_rehearsal import LATENESS, PARTITIONS, Rehearsed, rehearse
from hypercast.serving.features import follower as following
from hypercast.serving.features.follower import Follower, Tail
from hypercast.serving.features.state import FeatureState
from hypercast.serving.metrics import Metrics
from streaming.dataset import Dataset
from streaming.errors import UserError
from streaming.sources.kafka import Record
from streaming.sources.sealed import SealedWindows, records
from streaming.sources.source import StreamConfig, StreamSource
from streaming.workspace import Workspace
from tests.hypercast.serving.features.test_state import bits_apart, by_surface, check_same, replayed
from tests.hypercast.serving.replay import questions_of
from tests.hypercast.serving.world import until
from tests.streaming.sources.fakes import FakeReader, Logs, logs_of

STREAM = StreamConfig(bootstrap_servers="nowhere", allowed_lateness_seconds=LATENESS, until="end")
ALL = FeatureState.Config(rehearsed=0)


def seal(folder: Path, catalogue: Dataset, logs: Logs, *, windows: int) -> Path:
    """Let training seal so many windows."""
    sealed = SealedWindows(folder=folder, catalogue=catalogue)
    with StreamSource(config=STREAM, sealed=sealed, reader=FakeReader(logs, seed=2)) as source:
        for _ in range(windows):
            assert source.seal_next() is not None
    return folder


class Slow(FakeReader):
    """One whose thread leaves others room."""

    def poll(self) -> list[Record]:
        records = super().poll()
        if not records:
            threading.Event().wait(0.001)
        return records


@contextlib.contextmanager
def following_on(
    rehearsed: Rehearsed, folder: Path, state: FeatureState, readers: Callable[[], FakeReader], metrics: Metrics
) -> Iterator[Follower]:
    tail = Tail(config=STREAM, catalogue=rehearsed.dataset, sealed=records(folder)[-1])
    with contextlib.closing(Follower(tail=tail, state=state, metrics=metrics, open_reader=readers)) as follower:
        yield follower
    assert not follower._thread.is_alive()


@pytest.mark.parametrize("late", [0.0, 0.05])
def test_every_request_is_asked_again(tmp_path: Path, late: float) -> None:
    rehearsed = rehearse(tmp_path / "data", "", late=late, twice=0.2)
    logs = logs_of(rehearsed.sent, partitions=PARTITIONS)
    begun = Workspace(Dataset.open(seal(tmp_path / "begun", rehearsed.dataset, logs, windows=2) / "data"))
    trained = Workspace(Dataset.open(seal(tmp_path / "trained", rehearsed.dataset, logs, windows=4) / "data"))
    as_of = begun.dataset.windows[-1].end
    state, metrics = FeatureState.open(begun, as_of=as_of, config=ALL), Metrics()
    with following_on(rehearsed, tmp_path / "begun", state, lambda: Slow(logs, seed=7), metrics) as follower:
        until(lambda: follower.caught_up)
    taken = sum(len(trained.dataset.engagements(window.index)) for window in trained.dataset.windows[2:])
    said = {name: metrics.value("events_total", outcome=name) for name in ("observed", "copy", "late", "old")}
    assert said["observed"] == state.statistics()["observed"] == taken
    assert said["copy"] == state.statistics()["copies"] > 0
    assert (said["late"] > 0) == (late > 0)
    fed = FeatureState.open(trained, as_of=as_of, config=ALL)
    asked = 0
    for window in trained.dataset.windows[2:]:
        by_training = {
            (part.request_id[0], part.surface[0]): one for part, one in replayed(trained, fed, window.index, 64)
        }
        for row in range(len(trained.requests(window.index))):
            for stored in by_surface(trained.requests(window.index).slice(row, row + 1), 2):
                if not len(stored):
                    continue
                online = state.requests(questions_of(trained, stored, given=state.given))
                if late:  # what requests carry was made before anything was late
                    offline = by_training[stored.request_id[0], stored.surface[0]]
                    assert bits_apart(online.dense, offline.dense) <= 1
                    for mine, theirs in zip(online.past[0], offline.past[0], strict=True):
                        np.testing.assert_array_equal(mine, theirs)
                else:
                    check_same(trained, stored, online)
                asked += 1
    assert asked > 20


def test_a_broker_that_refuses_is_asked_again_where_reading_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(following, "AGAIN_SECONDS", 0.01)
    rehearsed = rehearse(tmp_path / "data", "", late=0.0)
    logs = logs_of(rehearsed.sent, partitions=PARTITIONS)
    begun = Workspace(Dataset.open(seal(tmp_path / "begun", rehearsed.dataset, logs, windows=2) / "data"))
    state, metrics = FeatureState.open(begun, as_of=begun.dataset.windows[-1].end, config=ALL), Metrics()
    opened: list[FakeReader] = []
    allowed = threading.Event()

    class Refusing(Slow):
        def poll(self) -> list[Record]:
            if len(opened) == 2 or (len(opened) == 1 and self.given > 10):
                raise UserError("the broker refuses.")
            if len(opened) == 3:
                allowed.wait(20)
            return super().poll()

    def readers() -> FakeReader:
        opened.append(Refusing(logs, seed=len(opened)))
        return opened[-1]

    with following_on(rehearsed, tmp_path / "begun", state, readers, metrics) as follower:
        until(lambda: len(opened) == 3)
        assert follower.refused == "the broker refuses." and follower.describe()["refused"] and not follower.caught_up
        assert follower.behind_seconds() > 0
        allowed.set()
        until(lambda: follower.caught_up)
        assert follower.refused is None
        assert metrics.value("stream_behind_seconds", topic="engagements") < 60
    assert caplog.text.count("the broker refuses.") == 1
    taken = sum(len(rehearsed.dataset.engagements(window.index)) for window in rehearsed.dataset.windows[2:])
    assert state.statistics()["observed"] == taken


def test_what_the_state_fails_to_take_in_is_taken_in_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "AGAIN_SECONDS", 0.01)
    rehearsed = rehearse(tmp_path / "data", "", late=0.0)
    logs = logs_of(rehearsed.sent, partitions=PARTITIONS)
    begun = Workspace(Dataset.open(seal(tmp_path / "begun", rehearsed.dataset, logs, windows=2) / "data"))
    state, metrics = FeatureState.open(begun, as_of=begun.dataset.windows[-1].end, config=ALL), Metrics()
    observe, calls = state.observe, list[int]()

    def fails_at_times(engagements: Mapping[str, np.ndarray] | pa.Table) -> int:
        calls.append(1)
        if len(calls) in (2, 3, 7):
            raise MemoryError
        return observe(engagements)

    monkeypatch.setattr(state, "observe", fails_at_times)
    with following_on(rehearsed, tmp_path / "begun", state, lambda: Slow(logs, seed=3), metrics) as follower:
        until(lambda: follower.caught_up)
    taken = sum(len(rehearsed.dataset.engagements(window.index)) for window in rehearsed.dataset.windows[2:])
    assert metrics.value("events_total", outcome="failed") == 3
    assert metrics.value("events_total", outcome="observed") == state.statistics()["observed"] == taken
    assert metrics.value("events_total", outcome="late") == 0


def test_partitions_that_were_added_are_read_from_their_beginning(tmp_path: Path) -> None:
    rehearsed = rehearse(tmp_path / "data", "", late=0.0)
    logs = logs_of(rehearsed.sent, partitions=PARTITIONS)
    few = {each: log for each, log in logs.items() if each.topic == "requests" or each.index == 0}
    begun = Workspace(Dataset.open(seal(tmp_path / "begun", rehearsed.dataset, few, windows=2) / "data"))
    state, metrics = FeatureState.open(begun, as_of=begun.dataset.windows[-1].end, config=ALL), Metrics()
    with following_on(rehearsed, tmp_path / "begun", state, lambda: Slow(logs, seed=1), metrics) as follower:
        until(lambda: follower.caught_up)
    taken = sum(len(rehearsed.dataset.engagements(window.index)) for window in rehearsed.dataset.windows[2:])
    assert state.statistics()["observed"] == taken
    assert metrics.value("events_total", outcome="old") > 0
