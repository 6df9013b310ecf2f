"""An index on disk says what the log in memory says, is built once, grows by windows, and is never trusted blindly."""

import errno
import os
import pickle
import shutil
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streaming.engagement_index as engagement_index
from streaming.cache import cache_folder
from streaming.catalogue import Catalogue
from streaming.columns import MANIFEST
from streaming.dataset import Dataset
from streaming.engagement_build import Block, build
from streaming.engagement_index import MappedLog, open_index
from streaming.errors import DataError
from streaming.history import EngagementLog
from streaming.schema import TIME

ITEMS = Catalogue.read(pa.table({"item_id": range(6)}), id_column="item_id", attributes=[])
SURFACES = (-1, 0, 1)
# (user, time within the window, item, surface, action), several windows of them
EVENT = st.tuples(st.integers(2, 5), st.integers(0, 3), st.integers(0, 7), st.sampled_from(SURFACES), st.integers(0, 1))
WINDOWS = st.lists(st.lists(EVENT, max_size=12).map(lambda rows: sorted(rows, key=lambda e: e[:2])), max_size=4)
ANY_ORDER = st.lists(st.lists(EVENT, max_size=12), max_size=4)
REQUESTS = st.lists(st.tuples(st.integers(1, 6), st.integers(-1, 17)), max_size=8)


def blocks_of(windows: list[list[tuple[int, ...]]]) -> list[Block]:
    blocks = []
    for number, rows in enumerate(windows):
        user, time, item, surface, action = np.array(rows, dtype=np.int64).reshape(-1, 5).T
        blocks.append(Block(user, ITEMS.rows(item), surface, action, time + 4 * number))
    return blocks


def in_memory(blocks: list[Block]) -> EngagementLog:
    user, item, surface, action, time = (
        np.concatenate([np.zeros(0, dtype=np.int64), *(block[column] for block in blocks)]) for column in range(5)
    )
    columns = {"user_id": user, "item_id": item, "surface": surface.astype(np.int8), "action": action.astype(np.int8)}
    return EngagementLog.of(pa.table(columns | {"time": pa.array(time).cast(TIME)}), ITEMS)


def assert_same(log: EngagementLog, other: EngagementLog) -> None:
    for field in fields(EngagementLog):
        one, two = getattr(log, field.name), getattr(other, field.name)
        assert one.dtype == two.dtype and one.tolist() == two.tolist(), field.name


@settings(deadline=None, max_examples=40)  # every example is a folder on disk
@given(WINDOWS, REQUESTS, st.integers(0, 5))
def test_equal_to_the_log_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    windows: list[list[tuple[int, ...]]],
    requests: list[tuple[int, int]],
    max_length: int,
) -> None:
    blocks, folder = blocks_of(windows), tmp_path_factory.mktemp("index")
    build(folder, lambda: blocks, ITEMS.ids, {})
    mapped, memory = MappedLog.open(folder), in_memory(blocks)
    assert_same(mapped, memory)
    user, time = np.array(requests, dtype=np.int64).reshape(-1, 2).T
    spans = mapped.spans(user, time, max_length=max_length)
    for found, expected in zip(spans, memory.spans(user, time, max_length=max_length), strict=True):
        assert found.tolist() == expected.tolist()
    for found, expected in zip(mapped.take(*spans), memory.take(*spans), strict=True):
        assert found.dtype == expected.dtype and found.tolist() == expected.tolist()


@settings(deadline=None, max_examples=40)
@given(ANY_ORDER)
def test_blocks_in_any_order(tmp_path_factory: pytest.TempPathFactory, windows: list[list[tuple[int, ...]]]) -> None:
    blocks, folder = blocks_of(windows)[::-1], tmp_path_factory.mktemp("index")
    build(folder, lambda: blocks, ITEMS.ids, {})
    assert_same(MappedLog.open(folder), in_memory(blocks))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def items(tiny_dataset: Dataset) -> Catalogue:
    return Catalogue.read(tiny_dataset.items(), id_column="item_id", attributes=[])


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Engagement parts that were read to build something, each twice."""
    read: list[Path] = []
    part_blocks = engagement_index.part_blocks

    def recorded(file: Path, catalogue: Catalogue) -> Iterator[Block]:
        read.append(file)
        return part_blocks(file, catalogue)

    monkeypatch.setattr(engagement_index, "part_blocks", recorded)
    return read


def of_windows(dataset: Dataset, count: int) -> Dataset:
    """The data set before its later windows were there."""
    boundaries = dataset.config.window_boundaries[: count + 1]
    return Dataset(path=dataset.path, config=dataset.config.model_copy(update={"window_boundaries": boundaries}))


def test_built_once_and_equal(tiny_dataset: Dataset, items: Catalogue, cache: Path, built: list[Path]) -> None:
    assert_same(open_index(tiny_dataset, items, cache=cache), EngagementLog.read(tiny_dataset, items))
    assert len(built) == 2 * len(tiny_dataset.windows)
    assert_same(open_index(tiny_dataset, items, cache=cache), EngagementLog.read(tiny_dataset, items))
    assert len(built) == 2 * len(tiny_dataset.windows)


@pytest.mark.parametrize("surface", [-1, 0, 1])
def test_one_surface(tiny_dataset: Dataset, items: Catalogue, cache: Path, surface: int) -> None:
    log = open_index(tiny_dataset, items, cache=cache)
    for _ in range(2):
        only, expected = log.only(surface), EngagementLog.read(tiny_dataset, items).only(surface)
        requests = tiny_dataset.requests(4)
        who = requests["user_id"].to_numpy(), requests["time"].cast(pa.int64()).to_numpy()
        found = only.take(*only.spans(*who, max_length=5))
        for one, two in zip(found, expected.take(*expected.spans(*who, max_length=5)), strict=True):
            assert one.tolist() == two.tolist()
    assert len(list(cache.glob("*/*/manifest.json"))) == 2


def test_grows_by_windows(tiny_dataset: Dataset, items: Catalogue, cache: Path, built: list[Path]) -> None:
    early = open_index(of_windows(tiny_dataset, 4), items, cache=cache)
    seen = early.time.tolist()
    built.clear()
    log = open_index(tiny_dataset, items, cache=cache)
    assert sorted(set(built)) == [tiny_dataset.engagement_file(5), tiny_dataset.engagement_file(6)]
    assert_same(log, EngagementLog.read(tiny_dataset, items))
    assert [path.parent for path in cache.glob("*/*/manifest.json")] == [log.pages.folder]  # the earlier one has gone
    assert early.time.tolist() == seen  # and who mapped it has it still


def test_grows_with_new_items(tiny_dataset: Dataset, items: Catalogue, cache: Path) -> None:
    used = np.unique(np.concatenate([tiny_dataset.engagements(w)["item_id"].to_numpy() for w in (1, 2)]))
    few = Catalogue.read(pa.table({"item_id": used}), id_column="item_id", attributes=[])
    open_index(of_windows(tiny_dataset, 2), few, cache=cache)
    assert_same(open_index(tiny_dataset, items, cache=cache), EngagementLog.read(tiny_dataset, items))


def test_unknown_items_are_looked_up_again(
    tiny_dataset: Dataset, items: Catalogue, cache: Path, built: list[Path]
) -> None:
    few = Catalogue.read(tiny_dataset.items().slice(0, 5), id_column="item_id", attributes=[])
    before = of_windows(tiny_dataset, 5)
    assert_same(open_index(before, few, cache=cache), EngagementLog.read(before, few))
    built.clear()
    assert_same(open_index(tiny_dataset, items, cache=cache), EngagementLog.read(tiny_dataset, items))
    assert len(set(built)) == len(tiny_dataset.windows)  # what was unknown then cannot be named from the index


def test_a_changed_part_is_another_index(tiny_dataset: Dataset, items: Catalogue, cache: Path, tmp_path: Path) -> None:
    before = open_index(tiny_dataset, items, cache=cache)
    copy = Dataset.open(shutil.copytree(tiny_dataset.path, tmp_path / "copy"))
    assert open_index(copy, items, cache=cache).pages.folder == before.pages.folder
    pq.write_table(copy.engagements(3).slice(1), copy.engagement_file(3))
    after = open_index(copy, items, cache=cache)
    assert len(after.time) == len(before.time) - 1
    assert_same(after, EngagementLog.read(copy, items))


def test_a_missing_part_is_named(tiny_dataset: Dataset, items: Catalogue, cache: Path, tmp_path: Path) -> None:
    copy = Dataset.open(shutil.copytree(tiny_dataset.path, tmp_path / "copy"))
    copy.engagement_file(3).unlink()
    with pytest.raises(DataError, match=r"window=00003.* is missing"):
        open_index(copy, items, cache=cache)


def test_damage_is_refused_and_mended_by_deleting(tiny_dataset: Dataset, items: Catalogue, cache: Path) -> None:
    folder = open_index(tiny_dataset, items, cache=cache).pages.folder
    data = bytearray((folder / "time.bin").read_bytes())
    data[100] ^= 1
    (folder / "time.bin").write_bytes(data)
    with pytest.raises(DataError, match="delete the folder"):
        open_index(tiny_dataset, items, cache=cache)
    shutil.rmtree(folder)
    assert_same(open_index(tiny_dataset, items, cache=cache), EngagementLog.read(tiny_dataset, items))


def test_what_a_killed_builder_left_is_swept_away(tiny_dataset: Dataset, items: Catalogue, cache: Path) -> None:
    folder = open_index(tiny_dataset, items, cache=cache).pages.folder
    partial = folder.rename(folder.with_name(f".{folder.name}.partial"))
    (partial / MANIFEST).unlink()
    assert_same(open_index(tiny_dataset, items, cache=cache), EngagementLog.read(tiny_dataset, items))
    assert not partial.exists()


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
    tiny_dataset: Dataset, items: Catalogue, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("os.posix_fallocate", full)
        with pytest.raises(DataError, match=r"cannot be written there \(No space left on device\).*HYPERCAST_CACHE"):
            open_index(tiny_dataset, items, cache=cache)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]
    assert_same(open_index(tiny_dataset, items, cache=cache), EngagementLog.read(tiny_dataset, items))


def test_a_cache_that_cannot_be_written_is_named(tiny_dataset: Dataset, items: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/cache: .* cannot be written there"):
        open_index(tiny_dataset, items, cache=tmp_path / "file" / "cache")


def test_many_at_once_build_one(tiny_dataset: Dataset, items: Catalogue, cache: Path, built: list[Path]) -> None:
    logs: list[MappedLog] = []
    threads = [
        threading.Thread(target=lambda: logs.append(open_index(tiny_dataset, items, cache=cache))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 2 * len(tiny_dataset.windows)
    assert [log.time.tolist() for log in logs] == [logs[0].time.tolist()] * 6


def test_pickled_it_is_the_name_of_its_folder(tiny_dataset: Dataset, items: Catalogue, cache: Path) -> None:
    log = open_index(tiny_dataset, items, cache=cache)
    data = pickle.dumps(log)
    assert len(data) < 1000 < log.time.nbytes
    assert_same(pickle.loads(data), log)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HYPERCAST_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "hypercast"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "hypercast"
    monkeypatch.setenv("HYPERCAST_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
