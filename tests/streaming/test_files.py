"""A reader sees the old content or the new one, whole, whatever happens to the writer."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from streaming import files


class KilledError(Exception):
    """Stands for the end of the writing process."""


def half_written(partial: Path) -> None:
    partial.write_text("hal")
    raise KilledError


def half_written_folder(partial: Path) -> None:
    (partial / "one").write_text("1")
    raise KilledError


def one(number: int) -> Callable[[Path], None]:
    def write(partial: Path) -> None:
        (partial / "one").write_text(str(number))

    return write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_and_replace(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "note.txt"
    files.write_text(path, "first ö")
    files.write_text(path, "second ö")
    assert path.read_text(encoding="utf-8") == "second ö"
    files.write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["note.txt"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    files.write_text(path, "old")
    with pytest.raises(KilledError):
        files.write_file(path, half_written)
    assert path.read_text() == "old"
    files.write_text(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["note.txt"]


def test_a_killed_writer_leaves_no_new_file(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        files.write_file(tmp_path / "note.txt", half_written)
    assert not (tmp_path / "note.txt").exists()
    assert all(name.startswith(".") for name in names(tmp_path))


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    files.write_text(path, "old")

    def write(partial: Path) -> None:
        partial.write_text("new")
        assert path.read_text() == "old"

    files.write_file(path, write)
    assert path.read_text() == "new"


def test_folder_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "made" / "folder"
    with pytest.raises(KilledError):
        files.write_directory(path, half_written_folder)
    assert not path.exists()

    def write(partial: Path) -> None:
        assert names(partial) == []  # nothing of the killed attempt
        assert not path.exists()
        (partial / "deep").mkdir()
        (partial / "deep" / "two").write_text("2")

    files.write_directory(path, write)
    assert names(path) == ["deep"]
    assert (path / "deep" / "two").read_text() == "2"
    assert names(path.parent) == ["folder"]


def test_a_published_folder_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    files.write_directory(path, one(1))
    with pytest.raises(FileExistsError, match="folder"):
        files.write_directory(path, one(2))
    assert (path / "one").read_text() == "1"
    assert names(tmp_path) == ["folder"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    files.write_directory(tmp_path / "folder", one(1))
    assert names(tmp_path / "folder") == ["one"]


def test_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    files.write_bytes(tmp_path / "data", data)
    assert files.sha256_of(tmp_path / "data") == hashlib.sha256(data).hexdigest()
