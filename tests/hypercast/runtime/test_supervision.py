"""Jobs in actors that die: they start anew, in order, and the others go on. Real processes, killed."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from hypercast.runtime.board import Board
from hypercast.runtime.engine import Job, Resources
from hypercast.runtime.ray_engine import RayEngine
from hypercast.runtime.supervision import JobDiedError, SupervisedJob
from streaming.errors import DataError


def diary() -> type:
    """A job whose state is the lines of a file, made here so that it travels to another process as it is."""

    class Diary:
        def __init__(self, file: Path) -> None:
            if (poison := file.with_suffix(".poison")).exists():
                poison.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            self.file = file
            self.lines = file.read_text().split() if file.exists() else []

        def write(self, line: str, after: int = 0, hold: str = "") -> int:
            while hold and Path(hold).exists():
                time.sleep(0.01)
            if line not in self.lines:
                self.lines.append(line)
                self.file.write_text(" ".join(self.lines))
            return len(self.lines)

        def refuse(self) -> None:
            raise DataError("there is no paper.")

        def die(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    return Diary


@pytest.fixture(scope="module")
def board() -> Board:
    return Board()


@pytest.fixture(scope="module")
def engine(board: Board) -> Iterator[RayEngine]:
    engine = RayEngine(config=RayEngine.Config(restarts=2), cpus=3, board=board)
    yield engine
    engine.close()


def start(engine: RayEngine, folder: Path, name: str) -> SupervisedJob:
    job = Job(kind=diary(), arguments=(folder / f"{name}.txt",), name=name, owns=(folder / "locks" / name,))
    return engine.start(job)


def pid_of(job: SupervisedJob, *, other_than: int | None = None) -> int:
    deadline = time.monotonic() + 120
    while job.pid in (None, other_than) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert job.pid not in (None, other_than)
    return int(job.pid or 0)


def test_a_killed_job_is_given_its_calls_again_and_the_others_go_on(
    engine: RayEngine, board: Board, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    killed, other = start(engine, tmp_path, "killed"), start(engine, tmp_path, "other")
    promises: list[Any] = [
        killed.call("write", "a"),
        killed.call("write", "b", 0, str(hold)),
        killed.call("write", "c"),
    ]
    waiting = other.call("write", "after", promises[1])
    assert engine.result(promises[0]) == 1
    first = pid_of(killed)
    unmoved = pid_of(other)
    os.kill(first, signal.SIGKILL)
    second = pid_of(killed, other_than=first)
    assert not waiting.future.done()
    os.kill(second, signal.SIGKILL)
    pid_of(killed, other_than=second)
    hold.unlink()
    assert [engine.result(promise) for promise in promises] == [1, 2, 3]
    assert (tmp_path / "killed.txt").read_text() == "a b c"
    assert engine.result(waiting) == 1 and other.pid == unmoved
    assert engine.restarts() == {"killed": 2}
    assert {line.name: line.restarts for line in board.lines()} == {"killed": 2, "other": 0}


def test_a_job_that_dies_too_often_is_named(engine: RayEngine, tmp_path: Path) -> None:
    job = start(engine, tmp_path, "doomed")
    lost = job.call("die")
    later = job.call("write", "a")
    for promise in (lost, later):
        with pytest.raises(JobDiedError, match=r"^job 'doomed' has died again, and `ray.restarts: 2`.*expert_jobs: 1$"):
            engine.result(promise)
    assert engine.restarts()["doomed"] == 2


def test_a_job_that_dies_while_it_is_constructed_is_constructed_again(engine: RayEngine, tmp_path: Path) -> None:
    (tmp_path / "poisoned.poison").touch()
    assert engine.result(start(engine, tmp_path, "poisoned").call("write", "a")) == 1
    assert engine.restarts()["poisoned"] == 1


def test_an_error_of_the_job_is_raised_and_is_no_death(engine: RayEngine, tmp_path: Path) -> None:
    job = start(engine, tmp_path, "refusing")
    with pytest.raises(DataError, match=r"^there is no paper\.$"):
        engine.result(job.call("refuse"))
    assert engine.result(job.call("write", "a")) == 1
    assert "refusing" not in engine.restarts()


def test_a_job_begins_when_the_one_before_it_is_gone(engine: RayEngine, tmp_path: Path) -> None:
    before = start(engine, tmp_path, "same")
    engine.result(before.ready)
    after = start(engine, tmp_path, "same")
    time.sleep(1)
    assert after.pid is None  # it waits for the lock that the other holds for life
    engine.stop(before)
    assert engine.result(after.call("write", "a")) == 1


def test_a_job_that_no_machine_has_room_for_is_told_of_and_can_be_stopped(
    engine: RayEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = engine.start(
        Job(kind=diary(), arguments=(tmp_path / "large.txt",), name="large", resources=Resources(cpus=1000))
    )
    promise = job.call("write", "a")
    assert "job 'large' waits until the cluster has grown" in caplog.text
    time.sleep(0.5)
    assert job.pid is None and not promise.future.done()
    engine.stop(job)
    with pytest.raises(CancelledError):
        engine.result(promise)
