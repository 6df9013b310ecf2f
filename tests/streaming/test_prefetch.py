"""Whoever works ahead, results and their order are the same, never too many at once, and errors are not lost."""

import operator
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.batch import BatchReader, RequestBatch
from streaming.config import parse
from streaming.dataset import Dataset
from streaming.errors import ConfigError, DataError
from streaming.prefetch import Prefetch, WorkerError
from streaming.workspace import Workspace


def threads(workers: int, ahead: int = 4) -> Prefetch.Config:
    return Prefetch.Config(kind="thread", workers=workers, ahead=ahead)


@given(st.lists(st.integers()), st.integers(0, 3), st.integers(1, 5))
def test_results_come_in_the_order_of_the_tasks(tasks: list[int], workers: int, ahead: int) -> None:
    prefetch = Prefetch(config=threads(workers, ahead), work=operator.neg)
    for _ in range(2):  # and can be asked for again
        assert list(prefetch(tasks)) == [-task for task in tasks]


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (1, 3), (3, 2), (3, 5)])
def test_never_more_than_ahead_are_waiting(workers: int, ahead: int) -> None:
    begun, finished, lock = 0, threading.Event(), threading.Lock()

    def work(task: int) -> int:
        nonlocal begun
        with lock:
            begun += 1
            if begun >= ahead:
                finished.set()
        return task

    results = Prefetch(config=threads(workers, ahead), work=work)(range(40))
    for taken, _ in enumerate(results, start=1):
        assert begun <= taken - 1 + ahead
    assert begun == 40 and finished.is_set()


def test_tasks_are_drawn_as_they_are_needed() -> None:
    drawn: list[int] = []

    def tasks() -> Iterator[int]:
        for task in range(100):
            drawn.append(task)
            yield task

    results = Prefetch(config=threads(2, 3), work=operator.neg)(tasks())
    assert drawn == []
    assert [next(results) for _ in range(5)] == [0, -1, -2, -3, -4]
    assert len(drawn) == 7
    results.close()
    assert len(drawn) == 7


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_comes_where_its_result_would_have(workers: int) -> None:
    def work(task: int) -> int:
        if task == 5:
            raise DataError("task 5 is bad")
        return task

    results = Prefetch(config=threads(workers), work=work)(range(10))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="task 5 is bad"):
        next(results)


def test_a_process_that_dies_is_one_clear_error_and_the_next_call_starts_anew() -> None:
    prefetch = Prefetch(config=Prefetch.Config(kind="process", workers=1, ahead=2), work=signal.raise_signal)
    assert list(prefetch([0, 0, 0])) == [None, None, None]  # signal 0 does nothing
    with pytest.raises(WorkerError, match="one of 1 prefetching processes died"):
        list(prefetch([0, signal.SIGKILL, 0]))
    assert list(prefetch([0])) == [None]


def test_an_error_in_a_process_keeps_its_kind() -> None:
    prefetch = Prefetch(config=Prefetch.Config(kind="process", workers=1), work=os.path.getsize)
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        list(prefetch(["/nothing-here"]))


def bits(batches: Iterator[RequestBatch]) -> list[bytes]:
    found = []
    for batch in batches:
        tensors = [batch.items.values(), batch.users.values(), batch.context.values(), batch.time_B, batch.item_C]
        tensors += [batch.surface_C, batch.dense_CF, batch.owner_C, batch.offsets]
        tensors += [batch.labels.label_CT, batch.labels.known_CT]
        for history in batch.history.values():
            tensors += [history.item_L, history.surface_L, history.action_L, history.time_L, history.offsets]
        kinds = [f"{tensor.dtype} {tuple(tensor.shape)}".encode() for tensor in tensors]
        found.append(b"".join([*kinds, *(tensor.numpy().tobytes() for tensor in tensors)]))
    return found


def reader(dataset: Dataset, config: Prefetch.Config) -> BatchReader:
    workspace = Workspace(dataset, prefetch=config)
    log = workspace.engagements
    return workspace.reader({"all": (log, 7), "surface": (log.only(1), 3)})


@pytest.mark.parametrize(
    "config",
    [
        threads(1),
        threads(3, 2),
        pytest.param(Prefetch.Config(kind="process", workers=2), marks=pytest.mark.slow),
    ],
    ids=["thread", "threads", "processes"],
)
def test_batches_do_not_depend_on_who_makes_them(tiny_dataset: Dataset, config: Prefetch.Config) -> None:
    requests, known = Workspace(tiny_dataset).requests(4), {"since": 0, "before": 2**62}
    expected = bits(reader(tiny_dataset, threads(0)).batches(requests, size=7, **known))
    assert len(expected) > 5
    made = reader(tiny_dataset, config)
    for _ in range(2):
        assert bits(made.batches(requests, size=7, **known)) == expected


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="'thread' or 'process'"):
        parse({"kind": "fibre"}, Prefetch.Config, source="test")
    with pytest.raises(ConfigError, match="ahead"):
        parse({"ahead": 0}, Prefetch.Config, source="test")
