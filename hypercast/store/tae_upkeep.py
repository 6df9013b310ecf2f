"""Upkeep of the TAE log's folder: what is damaged, and what nothing refers to. See :mod:`hypercast.store.tae_log`."""

import re
from collections.abc import Iterator
from pathlib import Path

from hypercast.errors import StoreError
from hypercast.pins import SNAPSHOT_NAME
from hypercast.store.engine import Damage
from hypercast.store.segment import Segment
from streaming import files

_NAME = re.compile(r"window=[0-9]{5,}\.(arrow|json)")
_PARTIAL = re.compile(rf"\.{_NAME.pattern}\.partial")


def manifests(folder: Path) -> list[Path]:
    """Manifests of all segments under ``folder``, whole or damaged, by path."""
    return sorted(path for path in folder.glob("*/window=*.json") if _is_ours(path))


def verify(folder: Path) -> list[Damage]:
    """What :meth:`hypercast.store.tae_log.TaeLog.verify` returns for the folder of segments."""
    damages = []
    for path in manifests(folder):
        try:
            Segment.open(path).verify()
        except FileNotFoundError:
            continue  # deleted since it was listed
        except StoreError as error:
            if path.exists():
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


def _is_ours(path: Path) -> bool:
    return SNAPSHOT_NAME.fullmatch(path.parent.name) is not None and _NAME.fullmatch(path.name) is not None
