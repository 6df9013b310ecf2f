"""Mapped columns give back what was written, or one clear error; what was looked at does not stay resident."""

import json
import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streaming.columns
from streaming.columns import Columns, ColumnWriter
from streaming.errors import DataError

VALUES = st.lists(st.integers(-128, 127), max_size=30)


def written(folder: Path, **columns: np.ndarray) -> Path:
    folder.mkdir()
    writer = ColumnWriter(folder, {name: (column.dtype.str, len(column)) for name, column in columns.items()})
    for name, column in columns.items():
        order = np.random.default_rng(0).permutation(len(column))  # in any order
        writer.column[name][order[::2]] = column[order[::2]]
        writer.let_go()
        writer.column[name][order[1::2]] = column[order[1::2]]
    writer.close({"about": "test"})
    return folder


@settings(deadline=None, max_examples=40)  # every example is a folder on disk
@given(VALUES, st.data())
def test_round_trip_and_runs(tmp_path_factory: pytest.TempPathFactory, values: list[int], data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("columns") / "made"
    small, large = np.array(values, dtype=np.int8), np.array(values, dtype=np.int64) << 40
    columns = Columns(written(folder, small=small, large=large), verify=True)
    assert columns.facts["about"] == "test"
    place = st.integers(0, len(values))
    runs = data.draw(st.lists(st.tuples(place, place).map(sorted), max_size=6))
    start, end = np.array(runs, dtype=np.int64).reshape(-1, 2).T
    for name, column in (("small", small), ("large", large)):
        assert columns.column[name].dtype == column.dtype
        assert columns.column[name].tolist() == column.tolist()
        assert columns.read(name, start, end).tolist() == [v for a, b in runs for v in column[a:b].tolist()]


def test_nobody_writes_into_what_is_mapped(tmp_path: Path) -> None:
    columns = Columns(written(tmp_path / "made", values=np.arange(5)), verify=True)
    with pytest.raises(ValueError, match="read-only"):
        columns.column["values"][0] = 1


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    folder = written(tmp_path / "made", values=np.arange(1000))
    file = folder / "values.bin"
    data = bytearray(file.read_bytes())
    data[4321] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"values\.bin: damaged .*delete the folder"):
        Columns(folder, verify=True)


@pytest.mark.parametrize("verify", [True, False])
def test_a_shortened_file_is_found(tmp_path: Path, verify: bool) -> None:
    folder = written(tmp_path / "made", values=np.arange(1000))
    (folder / "values.bin").write_bytes((folder / "values.bin").read_bytes()[:-8])
    with pytest.raises(DataError, match="7992 bytes, and not 8000"):
        Columns(folder, verify=verify)


def test_a_file_shortened_under_its_reader_is_found(tmp_path: Path) -> None:
    columns = Columns(written(tmp_path / "made", values=np.arange(1000)), verify=True)
    with (columns.folder / "values.bin").open("rb+") as file:
        file.truncate(800)
    with pytest.raises(DataError, match="it ends before byte 800"):
        columns.read("values", np.array([0, 90]), np.array([10, 110]))


@pytest.mark.parametrize("name", ["manifest.json", "values.bin"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path / "made", values=np.arange(3))
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name}: damaged"):
        Columns(folder, verify=True)


def test_a_manifest_of_something_else(tmp_path: Path) -> None:
    folder = written(tmp_path / "made", values=np.arange(3))
    (folder / "manifest.json").write_text(json.dumps({"other": 1}))
    with pytest.raises(DataError, match=r"manifest\.json: damaged"):
        Columns(folder, verify=True)


def test_resident_pages_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = Columns(written(tmp_path / "made", values=np.arange(1 << 20)), verify=True)
    monkeypatch.setattr(streaming.columns, "RESIDENT", 1 << 20)
    before = mapped_kib()
    total = columns.column["values"].sum()
    assert mapped_kib() > before + 7000  # of 8 MiB
    columns.looked_at(15)
    assert mapped_kib() > before + 7000
    columns.looked_at((1 << 20) // (16 * mmap.PAGESIZE))
    assert mapped_kib() < before + 1000
    assert columns.column["values"].sum() == total


def mapped_kib() -> int:
    """Resident pages of mapped files of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:"))
