"""Upkeep of the TAE log's folder: what is damaged, and what nothing refers to. See :mod:`hypercast.store.tae_log`."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hypercast.errors import StoreError, told_of_the_disk
from hypercast.lock import exclusive
from hypercast.pins import SNAPSHOT_NAME
from hypercast.store.engine import Damage
from hypercast.store.segment import Segment
from streaming import files

_NAME = re.compile(r"window=[0-9]{5,}\.(arrow|json)")
_PARTIAL = re.compile(rf"\.{_NAME.pattern}\.partial")


@contextmanager
def writing(folder: Path) -> Iterator[int]:
    """Hold the writers' lock of ``folder``, without what was left over; yields the bytes that this freed.

    What fails on a full disk leaves nothing unfinished, or it would stay full.

    Raises:
        StoreError: the disk is full, read-only or broken.
    """
    with told_of_the_disk(StoreError, folder), exclusive(folder):
        try:
            yield collect(folder)
        except OSError:
            with suppress(OSError):
                collect(folder)
            raise


def snapshots(folder: Path) -> list[str]:
    """Names of the snapshots that have a folder under ``folder``."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if SNAPSHOT_NAME.fullmatch(entry.name) and entry.is_dir())
    return []


def manifests(folder: Path) -> list[Path]:
    """Manifests of all segments under ``folder``, whole or damaged, by path."""
    found: list[Path] = []
    for snapshot in snapshots(folder):
        with suppress(FileNotFoundError):  # removed since it was listed
            found += (path for path in (folder / snapshot).iterdir() if _NAME.fullmatch(path.name))
    return sorted(path for path in found if path.suffix == ".json")


def load(manifest: Path, *, known: Segment | None = None) -> Segment | None:
    """The segment with its rows verified and mapped; None if there is none, or none any more.

    What is deleted, or published anew, while it is read is not mistaken for damage.

    Args:
        manifest: path of its manifest.
        known: a loaded segment, which is returned if it is this one.

    Raises:
        StoreError: a file is damaged.
    """
    while True:
        try:
            before = _identity(manifest)
            segment = Segment.open(manifest)
            if segment == known:
                return known
            segment.table  # noqa: B018
        except FileNotFoundError:
            return None
        except StoreError:
            with suppress(FileNotFoundError):
                if _identity(manifest) == before:
                    raise
        else:
            return segment


def verify(folder: Path) -> list[Damage]:
    """What :meth:`hypercast.store.tae_log.TaeLog.verify` returns for the folder of segments."""
    damages = []
    for path in manifests(folder):
        try:
            load(path)
        except StoreError as error:
            damages.append(Damage(where=str(path), what=str(error), remedy=f"Delete {path} and publish again."))
    return damages


def remove(segment: Segment) -> int:
    """Remove a segment, out of sight first, also after a power cut; bytes freed."""
    freed = 0
    for path in (segment.manifest_path, segment.path):
        size = path.stat().st_size if path.exists() else 0
        path.unlink(missing_ok=True)
        files.fsync_directory(path.parent)
        freed += size
    return freed


def collect(folder: Path) -> int:
    """Remove what :meth:`hypercast.store.tae_log.TaeLog.collect` removes; the caller holds the lock. Bytes freed."""
    freed = 0
    for path in _left_over(folder):
        size = path.stat().st_size
        path.unlink()
        freed += size
    for path in folder.iterdir():
        if path.is_dir() and SNAPSHOT_NAME.fullmatch(path.name) and not any(path.iterdir()):
            path.rmdir()
    return freed


def _left_over(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*/*")):
        unfinished = _PARTIAL.fullmatch(path.name)
        without_manifest = _NAME.fullmatch(path.name) and not path.with_suffix(".json").exists()
        if SNAPSHOT_NAME.fullmatch(path.parent.name) and (unfinished or without_manifest):
            yield path


def _identity(path: Path) -> tuple[int, int]:
    """Of the file that has this name now."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns
