"""The journal of engagements: whole lines, whoever writes and whoever is killed."""

import json
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypercast.errors import StoreError
from hypercast.serving.logs import intake
from hypercast.serving.logs.intake import COLUMNS, Intake, Journal, trim
from hypercast.serving.metrics import Metrics


class Observed:
    """Remembers the times of engagements."""

    def __init__(self) -> None:
        self.times: list[int] = []

    def observe(self, engagements: Any) -> int:
        assert set(engagements) == set(COLUMNS)
        assert all(column.dtype == np.int64 for column in engagements.values())
        self.times += engagements["time"].tolist()
        return len(engagements["time"])


def event(time: int) -> dict[str, int]:
    return {"user_id": -5, "item_id": 2**63 - 1, "time": time, "surface": -1, "action": 0}


def take_in(journal: Journal, state: Observed, every: float = 60.0, since: int = 0) -> Intake:
    return Intake(journal=journal, state=state, since=since, every=every, metrics=Metrics())


def many(path: Path, first: int) -> None:
    journal = Journal(path)
    for number in range(50):
        journal.add([event(first + number)] * 3)


def test_posts_of_many_processes_are_all_there_and_whole(tmp_path: Path) -> None:
    path, spawn = tmp_path / "events.jsonl", multiprocessing.get_context("fork")
    processes = [spawn.Process(target=many, args=(path, 1000 * number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    state = Observed()
    take_in(Journal(path), state).close()
    assert sorted(state.times) == sorted(1000 * one + number for one in range(3) for number in range(50) for _ in "abc")


def test_posts_of_many_threads_are_all_there_and_seen_when_acknowledged(tmp_path: Path) -> None:
    path, state = tmp_path / "events.jsonl", Observed()
    taken, together = take_in(Journal(path), state), threading.Barrier(8)

    def post(first: int) -> list[int]:
        together.wait()
        times = [*range(first, first + 40)]
        for time in times:
            taken.take([event(time)])
            assert time in state.times
        return times

    with ThreadPoolExecutor(8) as threads:
        acknowledged = sorted(time for times in threads.map(post, range(0, 8000, 1000)) for time in times)
    taken.close()
    assert sorted(state.times) == acknowledged
    assert sorted(json.loads(line)[0][2] for line in path.read_text().splitlines()) == acknowledged


def test_each_engagement_is_observed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "PIECE", 64)  # shorter than a post
    state = Observed()
    taken = take_in(Journal(tmp_path / "events.jsonl"), state)
    for number in range(5):
        taken.take([event(10 * number), event(10 * number + 1)])
        taken.catch_up()
    taken.take([])
    taken.close()
    assert state.times == [10 * number + one for number in range(5) for one in (0, 1)]


def test_what_the_data_set_has_is_not_observed_again(tmp_path: Path) -> None:
    """As after the next start, whose journal is trimmed."""
    state, path = Observed(), tmp_path / "events.jsonl"
    taken = take_in(Journal(path), state, since=5)
    taken.take([event(4), event(5), event(6)])
    taken.take([event(3)])
    taken.close()
    assert state.times == [5, 6]
    intake.trim(path, since=5)
    again = Observed()
    take_in(Journal(path), again, since=5).close()
    assert again.times == state.times


def test_half_a_line_of_a_killed_writer_goes(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    Journal(path).add([event(1)])
    with path.open("ab") as file:
        file.write(b"[[1, 2, 3")
    state = Observed()
    taken = take_in(Journal(path), state)
    taken.take([event(2)])
    taken.close()
    assert state.times == [1, 2]


def test_what_is_in_the_data_set_is_trimmed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    trim(path, since=0)  # none there yet
    journal = Journal(path)
    journal.add([event(time) for time in (1, 9, 10, 11)])
    journal.add([event(3)])
    with path.open("ab") as file:
        file.write(b"[[")
    journal.close()
    trim(path, since=10)
    trim(path, since=10)
    state = Observed()
    take_in(Journal(path), state).close()
    assert state.times == [10, 11]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        [[*event(time).values()]] for time in (10, 11)
    ]


def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, state = tmp_path / "events.jsonl", Observed()
    taken = take_in(Journal(path), state)
    taken.take([event(1)])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("hypercast.serving.logs.intake.os.fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            taken.take([event(2)])
    taken.take([event(3)])
    taken.close()
    assert state.times == [1, 3]


NO_POSTS = [b"", b"[[1, 2, 3", b"{}", b"7", b"[7]", b"[[1, 2, 3]]", b"[[1, 2, 3, 4, 5.5]]", b"[[1, 2, 3, 4, true]]"]
NO_POSTS += [b"[[1, 2, 3, 4, %d]]" % 2**63, b"[" * 100_000, b"\xff\x00"]


@pytest.mark.parametrize("damage", NO_POSTS, ids=range(len(NO_POSTS)))
def test_a_line_that_is_no_post_is_skipped_and_counted(tmp_path: Path, damage: bytes) -> None:
    path, state, metrics = tmp_path / "events.jsonl", Observed(), Metrics()
    taken = Intake(journal=Journal(path), state=state, since=0, every=60.0, metrics=metrics)
    taken.take([event(1)])
    with path.open("ab") as file:
        file.write(damage + b"\n")
    taken.take([event(2)])
    taken.close()
    assert state.times == [1, 2] and metrics.value("events_total", outcome="bad") == 1
    trim(path, since=0)
    again = Observed()
    take_in(Journal(path), again).close()
    assert again.times == [1, 2]


def test_a_journal_that_a_service_has_open_is_not_trimmed(tmp_path: Path) -> None:
    """A second service that starts on the run folder of a first one takes nothing from it."""
    path, state = tmp_path / "events.jsonl", Observed()
    first = take_in(Journal(path), state)
    first.take([event(1)])
    assert not trim(path, since=5)
    second_state = Observed()
    second = take_in(Journal(path), second_state)
    first.take([event(6)])
    second.take([event(7)])
    second.catch_up()
    first.catch_up()
    assert state.times == second_state.times == [1, 6, 7]
    first.close()
    assert not trim(path, since=5)
    second.close()
    assert trim(path, since=5)
    after = Observed()
    take_in(Journal(path), after).close()
    assert after.times == [6, 7]


def test_what_could_not_be_observed_is_observed_later(tmp_path: Path) -> None:
    class Failing(Observed):
        fails = False

        def observe(self, engagements: Any) -> int:
            if self.fails:
                raise MemoryError
            return super().observe(engagements)

    state = Failing()
    taken = take_in(Journal(tmp_path / "events.jsonl"), state)
    state.fails = True
    with pytest.raises(MemoryError):
        taken.take([event(1)])
    state.fails = False
    taken.take([event(2)])
    taken.close()
    assert state.times == [1, 2]
