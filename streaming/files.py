"""Files that are whole or absent: write beside, flush to disk, rename."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def fsync_directory(path: Path) -> None:
    """Make the names inside ``path`` durable: a rename survives a power cut only after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the bytes of ``path`` durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary sibling of ``path``, then move it into place atomically.

    A reader sees the old file or the new one, never a part. Left-overs of a killed writer are named ``.NAME.partial``
    and are overwritten by the next attempt.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    fsync_file(partial)
    os.replace(partial, path)
    fsync_directory(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Atomically replace the contents of ``path`` by ``data``."""
    write_file(path, lambda partial: _write_all(partial, data))


def write_text(path: Path, text: str) -> None:
    """Atomically replace the contents of ``path`` by ``text`` in UTF-8."""
    write_bytes(path, text.encode())


def write_directory(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary sibling folder, then move it to ``path`` atomically.

    Raises:
        FileExistsError: ``path`` exists and is not empty; a published folder is never overwritten.
    """
    if path.is_dir() and any(path.iterdir()):
        raise FileExistsError(errno.EEXIST, "a published folder is never overwritten", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    write(partial)
    for file in sorted(partial.rglob("*")):
        if file.is_file():
            fsync_file(file)
        else:
            fsync_directory(file)
    fsync_directory(partial)
    os.rename(partial, path)
    fsync_directory(path.parent)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_all(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
