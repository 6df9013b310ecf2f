"""Lanes: batches, deadlines, refusals, and what is put off."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from hypercast.serving.lanes.lane import Lane, LaneClosed, LaneFull, TooLate

Make = Callable[..., Lane[int, int]]


class Gate:
    """Work that goes on only when it is let, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.open.set()

    def __call__(self, jobs: Sequence[int]) -> list[int]:
        self.batches.append(list(jobs))
        self.entered.release()
        assert self.open.wait(20)
        if -1 in jobs:
            raise ValueError("minus one")
        return [10 * job for job in jobs]


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def make(gate: Gate) -> Iterator[Make]:
    lanes: list[Lane[int, int]] = []

    def build(**options: object) -> Lane[int, int]:
        settings = {"name": "test", "work": gate, "batch": 4, "waiting": 8, **options}
        lanes.append(Lane(**settings))  # type: ignore[arg-type]
        return lanes[-1]

    yield build
    gate.open.set()
    for lane in lanes:
        lane.close()


def in_batches(gate: Gate, lane: Lane[int, int], jobs: list[int]) -> list[int]:
    """Submit ``jobs`` while the lane is held up by a first one, 0; their results."""

    async def run() -> list[int]:
        gate.open.clear()
        first = lane.submit(0)
        await asyncio.to_thread(gate.entered.acquire)
        rest = [lane.submit(job) for job in jobs]
        gate.open.set()
        return [await first, *await asyncio.gather(*rest)]

    return asyncio.run(run())


async def idle(lane: Lane[int, int]) -> None:
    """Who waits is told before the lane has noted how long it took: wait until it has."""
    while lane.working:
        await asyncio.sleep(0.001)


def test_what_waits_meanwhile_is_one_batch_and_in_order(gate: Gate, make: Make) -> None:
    assert in_batches(gate, make(), [1, 2, 3, 4, 5]) == [0, 10, 20, 30, 40, 50]
    assert gate.batches == [[0], [1, 2, 3, 4], [5]]


def test_a_batch_holds_only_what_is_alike(gate: Gate, make: Make) -> None:
    assert in_batches(gate, make(alike=lambda job: job // 10), [11, 12, 21, 13]) == [0, 110, 120, 210, 130]
    assert gate.batches == [[0], [11, 12], [21], [13]]


def test_a_job_that_fails_does_not_fail_its_neighbours(gate: Gate, make: Make) -> None:
    lane = make()

    async def run() -> list[object]:
        gate.open.clear()
        first = lane.submit(0)
        await asyncio.to_thread(gate.entered.acquire)
        rest = [lane.submit(job) for job in (1, -1, 2)]
        gate.open.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    results = asyncio.run(run())
    assert [results[0], results[1], results[3]] == [0, 10, 20]
    assert isinstance(results[2], ValueError)


def test_what_cannot_be_in_time_is_refused_before_it_waits(gate: Gate, make: Make) -> None:
    lane = make()

    async def run() -> None:
        gate.open.clear()
        first = lane.submit(0)
        await asyncio.to_thread(gate.entered.acquire)
        await asyncio.sleep(0.05)
        gate.open.set()
        await first  # a unit has taken 50 ms
        await idle(lane)
        assert lane.seconds(1) > 0.05
        with pytest.raises(TooLate):
            lane.submit(1, by=time.monotonic() + 0.01)
        assert await lane.submit(2, by=time.monotonic() + 10) == 20

    asyncio.run(run())


def test_while_a_batch_is_overdue_others_are_refused(gate: Gate, make: Make) -> None:
    lane = make()

    async def run() -> None:
        assert await lane.submit(0) == 0
        gate.entered.acquire()
        gate.open.clear()
        first = lane.submit(1)
        await asyncio.to_thread(gate.entered.acquire)
        await asyncio.sleep(0.1)  # far longer than the last one took
        with pytest.raises(TooLate):
            lane.submit(2, by=time.monotonic() + 0.05)
        gate.open.set()
        assert await first == 10

    asyncio.run(run())


def test_a_batch_of_which_all_is_too_late_leaves_the_lane_free(gate: Gate, make: Make) -> None:
    lane = make()

    async def run() -> None:
        gate.open.clear()
        first = lane.submit(0)
        await asyncio.to_thread(gate.entered.acquire)
        late = lane.submit(1, by=time.monotonic() + 0.2)
        await asyncio.sleep(0.4)
        gate.open.set()
        await first
        with pytest.raises(TooLate):
            await late
        for job in range(2, 20):  # the median forgets the slow one
            assert await lane.submit(job) == 10 * job
        await idle(lane)
        assert lane.expected(1) < 0.1
        assert await lane.submit(1, by=time.monotonic() + 5) == 10

    asyncio.run(run())


def test_a_lane_that_was_slow_is_tried_again(gate: Gate, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypercast.serving.lanes.lane.PROBE", 0.0)
    lane = make()

    async def run() -> None:
        gate.open.clear()
        first = lane.submit(0)
        await asyncio.to_thread(gate.entered.acquire)
        await asyncio.sleep(0.05)
        gate.open.set()
        await first
        await idle(lane)
        assert await lane.submit(1, by=time.monotonic() + 0.01) == 10

    asyncio.run(run())


def test_no_more_wait_than_may(gate: Gate, make: Make) -> None:
    lane = make(waiting=2)

    async def run() -> None:
        gate.open.clear()
        futures = [lane.submit(0)]
        await asyncio.to_thread(gate.entered.acquire)
        futures += [lane.submit(1), lane.submit(2)]
        with pytest.raises(LaneFull):
            lane.submit(3)
        assert lane.waiting == 2
        gate.open.set()
        assert await asyncio.gather(*futures) == [0, 10, 20]

    asyncio.run(run())


def test_what_is_put_off_is_done_last_newest_first_and_the_oldest_is_forgotten(gate: Gate, make: Make) -> None:
    lane = make(behind=2)

    async def run() -> None:
        gate.open.clear()
        first = lane.submit(0)
        await asyncio.to_thread(gate.entered.acquire)
        assert [lane.put_off(job) for job in (7, 8, 9)] == [False, False, True]
        second = lane.submit(1)
        gate.open.set()
        assert [await first, await second] == [0, 10]

    asyncio.run(run())
    for _ in range(3):
        assert gate.entered.acquire(timeout=20)
    assert gate.batches == [[0], [1], [9], [8]]


def test_nothing_is_put_off_where_nothing_is_kept(gate: Gate, make: Make) -> None:
    assert make(behind=0).put_off(7)


def test_nobody_is_answered_who_no_longer_waits(gate: Gate, make: Make) -> None:
    lane = make()

    async def run() -> None:
        gate.open.clear()
        first = lane.submit(0)
        await asyncio.to_thread(gate.entered.acquire)
        gone, stays = lane.submit(1), lane.submit(2)
        gone.cancel()
        gate.open.set()
        assert [await first, await stays] == [0, 20]

    asyncio.run(run())
    assert gate.batches == [[0], [2]]


def test_closing_tells_who_waits(gate: Gate, make: Make) -> None:
    lane = make()

    async def run() -> None:
        gate.open.clear()
        first = lane.submit(0)
        await asyncio.to_thread(gate.entered.acquire)
        second = lane.submit(1)
        closing = asyncio.create_task(asyncio.to_thread(lane.close))
        with pytest.raises(LaneClosed):
            await second
        gate.open.set()
        assert await first == 0
        await closing
        with pytest.raises(LaneClosed):
            lane.submit(2)

    asyncio.run(run())
