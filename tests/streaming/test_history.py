"""Histories hold exactly what a brute-force filter finds strictly before the request (law L1)."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from streaming.catalogue import Catalogue
from streaming.dataset import Dataset
from streaming.history import EngagementLog, gather
from streaming.schema import TIME

ITEMS = Catalogue.read(pa.table({"item_id": range(6)}), id_column="item_id", attributes=[])
SURFACES = (-1, 0, 1)


@dataclass(frozen=True)
class Event:
    user: int
    time: int
    item: int
    surface: int
    action: int


@dataclass(frozen=True)
class Request:
    user: int
    time: int


# Few users and times, so that ties and repeated users are the rule.
EVENT = st.builds(
    Event, st.integers(2, 5), st.integers(0, 6), st.integers(0, 7), st.sampled_from(SURFACES), st.integers(0, 1)
)
EVENTS = st.lists(EVENT, max_size=25)
REQUESTS = st.lists(st.builds(Request, st.integers(1, 6), st.integers(-1, 8)), max_size=8)


def log_of(events: list[Event]) -> EngagementLog:
    columns = {
        "user_id": pa.array([e.user for e in events], pa.int64()),
        "time": pa.array([e.time for e in events], pa.int64()).cast(TIME),
        "item_id": pa.array([e.item for e in events], pa.int64()),
        "surface": pa.array([e.surface for e in events], pa.int8()),
        "action": pa.array([e.action for e in events], pa.int8()),
    }
    return EngagementLog.of(pa.table(columns), ITEMS)


def found(log: EngagementLog, requests: list[Request], max_length: int) -> list[list[tuple[int, int, int, int]]]:
    """(time, row of the item, surface, action) of each request's history."""
    user = np.array([r.user for r in requests], dtype=np.int64)
    time = np.array([r.time for r in requests], dtype=np.int64)
    start, end = log.spans(user, time, max_length=max_length)
    events, offsets = log.take(start, end), np.concatenate([[0], np.cumsum(end - start)])
    columns = (events.time, events.item, events.surface, events.action)
    values = list(zip(*(column.tolist() for column in columns), strict=True))
    return [values[a:b] for a, b in pairwise(offsets)]


def filtered(events: list[Event], request: Request, max_length: int) -> list[tuple[int, int, int, int]]:
    mine = [e for e in events if e.user == request.user and e.time < request.time]
    mine.sort(key=lambda e: e.time)  # stable: events at one time keep their order
    latest = mine[max(0, len(mine) - max_length) :]
    return [(e.time, min(e.item, 6), e.surface, e.action) for e in latest]  # item 6 and 7 are unknown: the last row


@given(EVENTS, REQUESTS, st.integers(0, 5))
def test_equal_to_a_filter(events: list[Event], requests: list[Request], max_length: int) -> None:
    log = log_of(events)
    assert found(log, requests, max_length) == [filtered(events, r, max_length) for r in requests]


@given(EVENTS, REQUESTS, st.integers(0, 5), st.sampled_from(SURFACES))
def test_only_one_surface(events: list[Event], requests: list[Request], max_length: int, surface: int) -> None:
    log = log_of(events).only(surface)
    of_surface = [e for e in events if e.surface == surface]
    assert found(log, requests, max_length) == [filtered(of_surface, r, max_length) for r in requests]


@given(EVENTS, EVENTS, st.builds(Request, st.integers(1, 6), st.integers(-1, 8)))
def test_the_present_and_the_future_change_nothing(past: list[Event], other: list[Event], request: Request) -> None:
    past = [e for e in past if e.time < request.time]
    later = [e for e in other if e.time >= request.time]
    assert found(log_of(past + later), [request], 9) == found(log_of(past), [request], 9)


def test_one_basket_at_the_time_of_the_request_is_not_seen() -> None:
    basket = [Event(3, 5, item, 0, 0) for item in range(4)]
    log = log_of([Event(3, 4, 5, 0, 0), *basket])
    assert found(log, [Request(3, 5)], 9) == [[(4, 5, 0, 0)]]
    assert [len(history) for history in found(log, [Request(3, 6), Request(3, 4)], 9)] == [5, 0]


def test_unknown_users_and_an_empty_log() -> None:
    log = log_of([Event(3, 1, 0, 0, 0)])
    assert found(log, [Request(2, 9), Request(4, 9), Request(3, 9)], 9) == [[], [], [(1, 0, 0, 0)]]
    assert found(log_of([]), [Request(3, 9)], 9) == [[]]


def test_times_as_in_real_logs() -> None:
    start = 1_700_000_000_000_000
    log = log_of([Event(3, start + k, k, 0, 0) for k in range(4)])
    assert [row[0] - start for row in found(log, [Request(3, start + 2)], 9)[0]] == [0, 1]


def test_read_covers_every_window(tiny_dataset: Dataset) -> None:
    items = Catalogue.read(tiny_dataset.items(), id_column="item_id", attributes=[])
    log = EngagementLog.read(tiny_dataset, items)
    tables = [tiny_dataset.engagements(window.index) for window in tiny_dataset.windows]
    assert len(log.time) == sum(len(table) for table in tables)
    assert all((np.diff(log.time[a:b]) >= 0).all() for a, b in pairwise(log.first))
    assert (log.item < len(items.ids)).all()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=6))
def test_gather(spans: list[tuple[int, int]]) -> None:
    start = np.array([s for s, _ in spans], dtype=np.int64)
    end = start + np.array([length for _, length in spans], dtype=np.int64)
    index, offsets = gather(start, end)
    assert index.tolist() == [i for a, b in zip(start, end, strict=True) for i in range(a, b)]
    assert offsets.tolist() == [0, *np.cumsum(end - start).tolist()]
