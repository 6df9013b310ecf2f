"""A flipped byte, wherever it is, is found on open, on read or by verify, and never served."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypercast.errors import StoreError
from hypercast.store.engine import Layout, Rows
from hypercast.store.local.engine import LocalEngine
from hypercast.store.local.manifest import NAME, SEGMENTS
from hypercast.store.local.segment import HEADER

LAYOUT = Layout(representation="penultimate", width=10, codec="bytes", row_bytes=10, model="ab12")
FM, OTHER = "FM@0001", "FM@0002"
KEY = np.arange(90).reshape(30, 3)
PAYLOAD = np.random.default_rng(0).integers(0, 256, (30, 10)).astype(np.uint8)


def open_store(path: Path) -> LocalEngine:
    return LocalEngine.Config(path=path).build()


def put(store: LocalEngine, snapshot: str = FM, *, rows: slice = slice(None)) -> None:
    at = np.arange(30)[rows]
    store.put(snapshot, LAYOUT, key=KEY[rows], computed_at=at, history_end=-at, payload=PAYLOAD[rows])
    store.commit(snapshot)


def right(rows: Rows) -> bool:
    """Each row is what was put."""
    return (
        bool(rows.found.all())
        and np.array_equal(rows.computed_at, np.arange(30))
        and np.array_equal(rows.history_end, -np.arange(30))
        and np.array_equal(rows.payload, PAYLOAD)
    )


def right_where_found(rows: Rows) -> bool:
    return np.array_equal(rows.payload, PAYLOAD * rows.found[:, None])


def flip(path: Path, offset: int, bits: int) -> None:
    """In place, as a disk does: those who have the file open see it too."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ bits]))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments and a pointer. Leave it as it is found."""
    path = tmp_path_factory.mktemp("sound") / "store"
    store = open_store(path)
    put(store, rows=slice(0, 20))
    put(store, rows=slice(20, 30))
    put(store, OTHER)
    store.move("FM/latest", expected=None, to=FM)
    assert store.verify() == []
    return path


def files_of(path: Path) -> list[Path]:
    return sorted([path / NAME, *(path / SEGMENTS).iterdir()])


def answer(store: LocalEngine, snapshot: str) -> Rows | str:
    """What is served, or why it is refused."""
    try:
        return store.get(snapshot, KEY)
    except StoreError as error:
        return str(error)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_flipped_byte_is_found_and_never_served(sound: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(files_of(sound)))
    size = file.stat().st_size
    regions = [st.integers(0, size - 1)]
    if file.name != NAME:
        # The header would otherwise take up most of so small a file.
        regions += [st.integers(0, 63), st.integers(HEADER, size - 1)]
    offset, bits = data.draw(st.one_of(regions)), data.draw(st.integers(1, 255))
    opened = open_store(sound)
    assert right(opened.get(FM, KEY)) and right(opened.get(OTHER, KEY))
    flip(file, offset, bits)
    try:
        for snapshot in (FM, OTHER):
            rows = answer(open_store(sound), snapshot)
            assert str(file) in rows if isinstance(rows, str) else right(rows)
            # Who has checked the index already may miss a row, but never takes another one for it.
            rows = answer(opened, snapshot)
            assert str(file) in rows if isinstance(rows, str) else right_where_found(rows)
        (damage,) = open_store(sound).verify()
        assert str(file) == damage.where and damage.what and damage.remedy
    finally:
        flip(file, offset, bits)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(offset=st.integers(HEADER, HEADER + 30 * 64 - 1), bits=st.integers(1, 255))
def test_flipped_byte_of_a_row_hinders_that_row_alone(sound: Path, offset: int, bits: int) -> None:
    """Also under an engine that has the file open already."""
    opened = open_store(sound)
    assert right(opened.get(OTHER, KEY))
    file, row = max((sound / SEGMENTS).iterdir()), (offset - HEADER) // 64
    flip(file, offset, bits)
    try:
        for store in (opened, open_store(sound)):
            refused = answer(store, OTHER)
            assert isinstance(refused, str) and f"{file}: row {row} is not what was written" in refused
            assert sum(is_served(store, place) for place in range(30)) == 29
    finally:
        flip(file, offset, bits)


def test_damage_is_not_merged_into_a_whole_segment(sound: Path, tmp_path: Path) -> None:
    path = shutil.copytree(sound, tmp_path / "store")
    flip(max((path / SEGMENTS).iterdir()), HEADER + 5 * 64 + 1, 1)
    store = open_store(path)
    put(store, OTHER, rows=slice(0, 1))
    with pytest.raises(StoreError, match="row 5 is not what was written"):
        store.compact(OTHER)
    assert len(store.verify()) == 1
    store.drop(OTHER)
    assert store.collect() > 0 and store.verify() == [] and right(store.get(FM, KEY))


def is_served(store: LocalEngine, place: int) -> bool:
    try:
        rows = store.get(OTHER, KEY[[place]])
    except StoreError:
        return False
    assert rows.found.all() and np.array_equal(rows.payload, PAYLOAD[[place]])
    return True


def test_verify_goes_on_after_the_first_finding(sound: Path, tmp_path: Path) -> None:
    path = shutil.copytree(sound, tmp_path / "store")
    first, second, third = files_of(path)[1:]
    flip(first, HEADER + 3 * 64 + 9, 1)
    flip(first, HEADER + 7 * 64 + 60, 1)
    flip(second, 70, 1)
    third.unlink()
    found = {damage.where: damage.what for damage in open_store(path).verify()}
    assert found == {
        str(first): "2 of 20 rows are not what was written: 3, 7",
        str(second): "its header is not what was written",
        str(third): "it is missing",
    }


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_file_of_another_length(sound: Path, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    for place in range(4):
        path = shutil.copytree(sound, tmp_path / f"store{place}")
        file = files_of(path)[place]
        file.write_bytes(change(file.read_bytes()))
        (damage,) = open_store(path).verify()
        assert damage.where == str(file)


def test_row_in_another_place_or_of_another_snapshot(sound: Path, tmp_path: Path) -> None:
    path = shutil.copytree(sound, tmp_path / "store")
    other = max((path / SEGMENTS).iterdir())
    data = bytearray(other.read_bytes())
    data[HEADER : HEADER + 64], data[HEADER + 64 : HEADER + 128] = (
        data[HEADER + 64 : HEADER + 128],
        data[HEADER : HEADER + 64],
    )
    other.write_bytes(data)
    (damage,) = open_store(path).verify()
    assert damage.what == "2 of 30 rows are not what was written: 0, 1"
    assert [place for place in range(30) if not open_store(path).get(OTHER, KEY[[place]]).found.all()] != []


def test_segment_of_another_snapshot_under_this_name(sound: Path, tmp_path: Path) -> None:
    path = shutil.copytree(sound, tmp_path / "store")
    one, _, other = files_of(path)[1:]
    one.write_bytes(other.read_bytes())
    with pytest.raises(StoreError, match="bytes instead of"):
        open_store(path).get(FM, KEY)


def test_lost_manifest_is_not_an_empty_store(sound: Path, tmp_path: Path) -> None:
    """Nothing that a manifest named is taken for a left-over."""
    path = shutil.copytree(sound, tmp_path / "store")
    (path / NAME).unlink()
    for call in (lambda store: store.get(FM, KEY), lambda store: store.collect(), put):
        with pytest.raises(StoreError, match="it is gone, and the segments that it named are not"):
            call(open_store(path))
    assert len(files_of(sound)) == len(list((path / SEGMENTS).iterdir())) + 1
    (damage,) = open_store(path).verify()
    assert damage.where == str(path / NAME)
