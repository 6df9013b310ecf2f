"""A request's checksum follows its past and nothing else, travels with it, and is compared before anything is read."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.catalogue import Catalogue
from streaming.dataset import Dataset
from streaming.errors import DataError
from streaming.history import EngagementLog
from streaming.history_check import history_check, seal
from streaming.schema import TIME
from streaming.validate import validate
from streaming.workspace import Workspace

ITEMS = Catalogue.read(pa.table({"item_id": range(6)}), id_column="item_id", attributes=[])
EVENTS = st.lists(st.tuples(st.integers(1, 3), st.integers(-2, 9)), max_size=20)  # (user, time)


def check(events: list[tuple[int, int]], user: int, time: int) -> int:
    users, times = np.array(events, dtype=np.int64).reshape(-1, 2).T
    zeros = np.zeros(len(events), dtype=np.int8)
    columns = {"user_id": users, "time": pa.array(times).cast(TIME), "item_id": zeros.astype(np.int64)}
    log = EngagementLog.of(pa.table(columns | {"surface": zeros, "action": zeros}), ITEMS)
    return int(history_check(log, np.array([user]), np.array([time]))[0])


def summary(events: list[tuple[int, int]], user: int, time: int) -> tuple[int, ...]:
    past = sorted(t for u, t in events if u == user and t < time)
    return (past[0], past[-1], len(past)) if past else ()


@given(EVENTS, EVENTS, st.integers(1, 3), st.integers(-2, 10), st.integers(-2, 10))
def test_equal_exactly_where_start_end_and_length_are(
    one: list[tuple[int, int]], two: list[tuple[int, int]], user: int, time: int, other_time: int
) -> None:
    same = summary(one, user, time) == summary(two, user, other_time)
    assert (check(one, user, time) == check(two, user, other_time)) == same


@given(EVENTS, EVENTS, st.integers(1, 3), st.integers(-2, 10))
def test_the_present_and_the_future_change_nothing(
    events: list[tuple[int, int]], other: list[tuple[int, int]], user: int, time: int
) -> None:
    later = [(u, t) for u, t in other if t >= time]
    past = [(u, t) for u, t in events if t < time]
    assert check(past + later, user, time) == check(past, user, time)


@pytest.fixture
def unsealed(tiny_dataset: Dataset, tmp_path: Path) -> Dataset:
    copy = Dataset.open(shutil.copytree(tiny_dataset.path, tmp_path / "copy"))
    for window in copy.windows:
        table = copy.requests(window.index)
        kept = [name for name in table.column_names if name != "history_check"]
        pq.write_table(table.select(kept), copy.request_file(window.index))
    return copy


@pytest.fixture
def sealed(unsealed: Dataset) -> Dataset:
    seal(unsealed)
    return unsealed


def rewrite(dataset: Dataset, window: int, change: Callable[[pa.Table], pa.Table]) -> Workspace:
    """The data set opened anew, with other engagements in one window."""
    pq.write_table(change(dataset.engagements(window)), dataset.engagement_file(window))
    return Workspace(Dataset.open(dataset.path))


def test_sealed_requests_are_the_same_with_a_checksum(unsealed: Dataset) -> None:
    before = {window.index: Workspace(unsealed).requests(window.index) for window in unsealed.windows}
    seal(unsealed)
    validate(unsealed)
    for window, plain in before.items():
        requests = Workspace(unsealed).requests(window)
        assert plain.history_check is None
        assert requests.history_check is not None and len(set(requests.history_check.tolist())) > 10
        assert requests.request_id.tolist() == plain.request_id.tolist()
        assert requests.dense.tolist() == plain.dense.tolist()
        part = requests.slice(3, 8).on_surface(int(requests.surface[0]))
        place = np.searchsorted(requests.request_id, part.request_id)
        assert part.history_check is not None
        assert part.history_check.tolist() == requests.history_check[place].tolist()


def test_sealing_twice_is_sealing_once(sealed: Dataset) -> None:
    first = sealed.requests(3)
    seal(sealed)
    assert sealed.requests(3).equals(first)


def moved(table: pa.Table) -> pa.Table:
    later = table["time"].cast(pa.int64()).to_numpy() + 1
    return table.set_column(table.schema.get_field_index("time"), "time", pa.array(later).cast(TIME))


@pytest.mark.parametrize(
    ("window", "change"),
    [
        (2, lambda table: table.slice(1)),
        (2, lambda table: pa.concat_tables([table.slice(0, 1), table])),
        (1, moved),  # the first of all
    ],
    ids=["lost", "gained", "moved"],
)
def test_another_past_is_found_out(sealed: Dataset, window: int, change: Callable[[pa.Table], pa.Table]) -> None:
    workspace = rewrite(sealed, window, change)
    for earlier in range(1, window):
        workspace.requests(earlier)
    message = r"window=00005.*column 'history_check': the history of user \d+ before request"
    with pytest.raises(DataError, match=message):
        workspace.requests(5)


def test_another_future_is_none_of_a_requests_business(sealed: Dataset) -> None:
    workspace = rewrite(sealed, 5, lambda table: table.slice(0, 0))
    for window in range(1, 5):
        workspace.requests(window)
    with pytest.raises(DataError, match="history_check"):
        workspace.requests(6)
