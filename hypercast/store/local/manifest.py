"""What the store consists of at one moment: one file, replaced whole.

::

    ROOT/MANIFEST       SHA-256 of what follows, then JSON: layout and segments by snapshot, snapshots by pointer
    ROOT/segments/      the files that it names; others are left-overs
    ROOT/.lock          held by the one who writes
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import pydantic

from hypercast.store.engine import Damage, Layout
from hypercast.store.local import steps
from hypercast.store.local.run import DamagedError
from hypercast.store.local.segment import Entry
from hypercast.store.local.steps import Step
from streaming import files
from streaming.config import Config

NAME = "MANIFEST"
SEGMENTS = "segments"
_DIGEST = 64


class SnapshotEntry(Config):
    """Rows of one snapshot: their layout, and the segments that hold them, oldest first, one at least."""

    layout: Layout
    segments: tuple[Entry, ...] = pydantic.Field(min_length=1)


class Manifest(Config):
    """See the module; ``generation`` counts how often it was replaced and names the next segment."""

    generation: int = 0
    snapshots: dict[str, SnapshotEntry] = {}
    pointers: dict[str, str] = {}

    def next_file(self, snapshot: str, number: int) -> str:
        """A name that no segment has had; ``number`` tells those of one commit apart."""
        return f"{snapshot}.{self.generation + 1:09d}.{number}"

    def files(self) -> set[str]:
        """Names of all segments."""
        return {segment.file for entry in self.snapshots.values() for segment in entry.segments}

    def with_snapshot(self, name: str, entry: SnapshotEntry | None) -> "Manifest":
        """The next one, with this entry; without, if it is None."""
        others = {other: kept for other, kept in self.snapshots.items() if other != name}
        return self._next(snapshots=others if entry is None else others | {name: entry})

    def with_pointer(self, pointer: str, to: str | None) -> "Manifest":
        """The next one, with this pointer; without, if ``to`` is None."""
        others = {other: kept for other, kept in self.pointers.items() if other != pointer}
        return self._next(pointers=others if to is None else others | {pointer: to})

    def _next(self, **changed: object) -> "Manifest":
        return self.model_copy(update={"generation": self.generation + 1, **changed})


class Identity(NamedTuple):
    """Tells manifests apart as long as the file of the one that is known stays open: its inode is not given anew."""

    device: int
    inode: int
    changed: int


def identity(path: str) -> Identity | None:
    """Of the manifest that is there now; None if there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return Identity(status.st_dev, status.st_ino, status.st_mtime_ns)


class Opened:
    """A manifest and its file, which stays open as long as this object lives."""

    def __init__(self, root: Path) -> None:
        """Read what is there now.

        Raises:
            DamagedError: it is not what was written, or it is gone and has left segments behind.
        """
        path = root / NAME
        try:
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:
            # In this order: a first writer may just have put it there.
            left = any((root / SEGMENTS).glob("*"))
            if left and identity(str(path)) is None:
                raise DamagedError(_damage(path, "it is gone, and the segments that it named are not")) from None
            self.identity, self.manifest = None, Manifest()
            return
        status = os.fstat(self._file.fileno())
        self.identity = Identity(status.st_dev, status.st_ino, status.st_mtime_ns)
        self.manifest = _parse(path, self._file.readall())


def _parse(path: Path, data: bytes) -> Manifest:
    digest, text = data[:_DIGEST], data[_DIGEST:]
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise DamagedError(_damage(path, "it is not what was written"))
    try:
        return Manifest.model_validate_json(text)
    except pydantic.ValidationError:
        raise DamagedError(_damage(path, "it is of another version of this program")) from None


def save(root: Path, manifest: Manifest) -> None:
    """Replace the manifest, for good and for everybody."""
    text = manifest.model_dump_json().encode()

    def write(path: Path) -> None:
        steps.reached(Step.MANIFEST_BEGUN)
        path.write_bytes(hashlib.sha256(text).hexdigest().encode() + text)
        steps.reached(Step.MANIFEST_WRITTEN)

    files.write_file(root / NAME, write)
    steps.reached(Step.MANIFEST_MOVED)


def _damage(path: Path, what: str) -> Damage:
    remedy = "Put back a copy of it, or remove the folder and publish its snapshots again."
    return Damage(where=str(path), what=what, remedy=remedy)
