"""A run in a file that never changes.

::

    header      4096 bytes: SHA-256 of the rest of the header, then JSON: snapshot, layout, rows, SHA-256 of the index
    records     int64 [R, W], sorted by hash
    hashes      uint64 [R + 1], of the records' keys; one more to end with     } the index
    directory   uint32 [D], the first row of each bucket                       }

Opening checks the size, the header, and the index; records are checked one by one when they are read. An index that
changes under those who have the file open can hide a row from them, never let them take one key for another. No
manifest names a file before it is whole, and no name is given twice.
"""

import errno
import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import pydantic

from hypercast.errors import StoreError
from hypercast.store.engine import Damage, Integers, Layout
from hypercast.store.local import records, steps
from hypercast.store.local.records import WORD, Hashes
from hypercast.store.local.run import END, DamagedError, Run, bits_of, directory_of
from hypercast.store.local.steps import Step
from hypercast.store.local.write_behind import WriteBehind
from streaming.config import Config

HEADER = 4096
_DIGEST = 64
_MOST_ROWS = 2**32 - 1
_BUCKETS_AT_ONCE = 1 << 18

Chunks = Iterable[tuple[Hashes, Integers]]


class Entry(Config):
    """What the manifest knows of a segment.

    Attributes:
        file: its name.
        rows: R.
        digest: SHA-256 of the header, which holds that of the index.
    """

    file: str
    rows: int = pydantic.Field(ge=1, le=_MOST_ROWS)
    digest: str


class Segment(Run):
    """See the module; opened by :meth:`open`."""

    entry: Entry
    path: Path
    _file: BinaryIO

    @classmethod
    def open(cls, folder: Path, entry: Entry, *, snapshot: str, layout: Layout) -> Self:
        """Map the file and check all but its records.

        Raises:
            FileNotFoundError: it is not there.
            DamagedError: it is not what was written.
        """
        path = folder / entry.file
        return cls._of(path.open("rb", buffering=0), path, entry, snapshot=snapshot, layout=layout)

    @classmethod
    def _of(cls, file: BinaryIO, path: Path, entry: Entry, *, snapshot: str, layout: Layout) -> Self:
        words, rows = records.words_of(layout.row_bytes), entry.rows
        size = HEADER + _index_offset(rows, words) + (rows + 1) * WORD + (4 << bits_of(rows))
        if os.fstat(file.fileno()).st_size != size:
            raise DamagedError(_damage(path, f"it has {os.fstat(file.fileno()).st_size} bytes instead of {size}"))
        mapped = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
        header = mapped[:HEADER]
        if header[:_DIGEST].decode("latin-1") != entry.digest or _digest(header[_DIGEST:]) != entry.digest:
            raise DamagedError(_damage(path, "its header is not what was written"))
        index = memoryview(mapped)[HEADER + _index_offset(rows, words) :]
        if _digest(index) != json.loads(header[_DIGEST:])["index"]:
            raise DamagedError(_damage(path, "its index is not what was written"))
        # Point reads: what lies around a row is of no use, and would push out of memory what is.
        mapped.madvise(mmap.MADV_RANDOM)
        segment = cls(
            where=str(path),
            seal=records.seal_of(snapshot, layout),
            hash_R1=np.frombuffer(index, np.uint64, rows + 1),
            record=np.frombuffer(mapped, np.int64, rows * words, HEADER).reshape(rows, words),
            directory=np.frombuffer(index, np.uint32, 1 << bits_of(rows), (rows + 1) * WORD),
        )
        segment.entry, segment.path, segment._file = entry, path, file
        return segment

    def slice(self, start: int, stop: int) -> Integers:
        """Read, not mapped: going through a large file must not count as memory of this process."""
        record = np.empty((stop - start, self.record.shape[1]), np.int64)
        rest, offset = record.data.cast("B"), HEADER + start * record.strides[0]
        while rest:
            count = os.preadv(self._file.fileno(), [rest], offset)
            if not count:
                raise DamagedError(self.damage("it has become shorter"))
            rest, offset = rest[count:], offset + count
        return record

    @property
    def bytes(self) -> int:
        """Of the file."""
        return os.fstat(self._file.fileno()).st_size

    def verify(self) -> Iterator[Damage]:
        """Read every record and compare it with its checksum and with the index."""
        bad: list[int] = []
        step = records.rows_per_chunk(self.record.shape[1])
        for start in range(0, len(self), step):
            record = self.slice(start, min(start + step, len(self)))
            key = np.ascontiguousarray(record[:, records.KEY])
            good = records.whole(record, self.seal)
            good &= records.hash_of(key) == self.hash[start : start + len(record)]
            bad += (start + np.flatnonzero(~good)).tolist()
        if bad:
            some = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            yield self.damage(f"{len(bad)} of {len(self)} rows are not what was written: {some}")


class Draft(Segment):
    """A segment without a name: it goes with the process, unless :meth:`keep` gives it one."""

    @classmethod
    def write(cls, file: BinaryIO, folder: Path, chunks: Chunks, *, snapshot: str, layout: Layout) -> Self:
        """Write it to an :func:`unnamed` file of ``folder``."""
        entry = _write(file, "rows-not-committed", chunks, snapshot=snapshot, layout=layout)
        return cls._of(file, folder / entry.file, entry, snapshot=snapshot, layout=layout)

    def keep(self, path: Path) -> Entry:
        """Let it survive the machine's end, as ``path``.

        Raises:
            FileNotFoundError: it was kept before, under a name that is gone: it can be read, but not kept again.
        """
        os.fsync(self._file.fileno())
        # With a folder's descriptor, although the path is absolute: only then does Python let the kernel follow it.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.link(f"/proc/self/fd/{self._file.fileno()}", path, src_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)
        steps.reached(Step.SEGMENT_KEPT)
        return self.entry.model_copy(update={"file": path.name})


def check_header(where: str, snapshot: str, layout: Layout) -> None:
    """Refuse what a segment cannot say of itself.

    Raises:
        StoreError: the name of the representation or of the codec is too long.
    """
    room, size = HEADER - _DIGEST, len(_facts(snapshot, layout, rows=_MOST_ROWS, index=_digest(b"")))
    if size > room:
        raise StoreError(
            f"{where}: the header of a segment of {snapshot} would take {size} bytes, and has {room}. Give the "
            f"representation a shorter name than {layout.representation[:32]!r}... of {len(layout.representation)} "
            "letters. Example: 'penultimate'."
        )


def unnamed(folder: Path) -> BinaryIO | None:
    """A file without a name for :class:`Draft`; None where the file system of ``folder`` has none."""
    try:
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o644), "w+b")
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):
            return None
        raise


def write(path: Path, chunks: Chunks, *, snapshot: str, layout: Layout) -> Entry:
    """Write a segment and let it survive the machine's end.

    Args:
        path: what an earlier attempt has left there is overwritten.
        chunks: hashes and records of one row or more in all, in the order of a segment.
        snapshot: that they belong to.
        layout: of the snapshot.
    """
    with path.open("wb") as file:
        entry = _write(file, path.name, chunks, snapshot=snapshot, layout=layout)
        os.fsync(file.fileno())
    steps.reached(Step.SEGMENT_KEPT)
    return entry


def _write(file: BinaryIO, name: str, chunks: Chunks, *, snapshot: str, layout: Layout) -> Entry:
    hashes = []
    file.write(bytes(HEADER))
    steps.reached(Step.SEGMENT_BEGUN)
    with WriteBehind(file) as behind:
        for hash_N, record_NW in chunks:
            hashes.append(hash_N)
            behind.write(np.ascontiguousarray(record_NW).data)
            steps.reached(Step.SEGMENT_ROWS)
    hash_R1 = np.concatenate([*hashes, [END]], dtype=np.uint64)
    header = _header(snapshot, layout, rows=len(hash_R1) - 1, index=_write_index(file, hash_R1))
    file.seek(0)
    file.write(header)
    file.flush()
    steps.reached(Step.SEGMENT_WRITTEN)
    return Entry(file=name, rows=len(hash_R1) - 1, digest=header[:_DIGEST].decode())


def _write_index(file: BinaryIO, hash_R1: Hashes) -> str:
    digest = hashlib.sha256()
    buckets = 1 << bits_of(len(hash_R1) - 1)
    parts: Iterator[Any] = (
        directory_of(hash_R1[:-1], first=first, last=min(first + _BUCKETS_AT_ONCE, buckets))
        for first in range(0, buckets, _BUCKETS_AT_ONCE)
    )
    for part in (hash_R1, *parts):
        file.write(part.data)
        digest.update(part)
    return digest.hexdigest()


def _header(snapshot: str, layout: Layout, *, rows: int, index: str) -> bytes:
    rest = _facts(snapshot, layout, rows=rows, index=index).ljust(HEADER - _DIGEST)
    return _digest(rest).encode() + rest


def _facts(snapshot: str, layout: Layout, *, rows: int, index: str) -> bytes:
    return json.dumps({"snapshot": snapshot, "layout": layout.to_json(), "rows": rows, "index": index}).encode()


def _index_offset(rows: int, words: int) -> int:
    return rows * words * WORD


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def _damage(path: Path, what: str) -> Damage:
    return Damage(where=str(path), what=what, remedy="Drop its snapshot and publish it again.")
