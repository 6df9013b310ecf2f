"""Columns of numbers on disk, mapped into memory: written once, checksummed, never changed, shared between processes.

::

    FOLDER/
      manifest.json   what the columns are of; of every column its type, length and SHA-256
      NAME.bin        one column, little-endian, nothing else

What is looked at here and there is mapped; long runs are read, which is faster than to have them mapped page by page.
Both come from the machine's page cache, where all processes share what one has read. A process lets go of its mapped
pages whenever it may have ``RESIDENT`` bytes of them, so that its own memory stays bounded however large the files are.
"""

import json
import mmap
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from streaming.errors import DataError
from streaming.files import sha256_of

MANIFEST = "manifest.json"
RESIDENT = 32 << 20
"""Bytes of mapped pages a process holds on to. To let go of them takes a millisecond: more would be felt at once."""
FAULT = 16 * mmap.PAGESIZE
"""Bytes that the system maps around one that is looked at."""


class ColumnWriter:
    """Fills the columns of a new folder in any order, without holding them in memory.

    Args:
        folder: exists and is empty.
        columns: type and length of each column, by name.

    Attributes:
        column: the columns, mapped for writing, by name.

    Raises:
        OSError: there is not enough space on the disk.
    """

    def __init__(self, folder: Path, columns: Mapping[str, tuple[str, int]]) -> None:
        self.folder = folder
        self._maps: list[mmap.mmap] = []
        self.column: dict[str, np.ndarray] = {}
        for name, (kind, length) in columns.items():
            with (folder / f"{name}.bin").open("wb+") as file:
                self.column[name] = self._map(file.fileno(), np.dtype(kind), length)

    def _map(self, descriptor: int, kind: np.dtype, length: int) -> np.ndarray:
        if length == 0:  # an empty file cannot be mapped
            return np.empty(0, dtype=kind)
        # Space is taken now: where there is too little, this is an error, and no write kills the process later.
        os.posix_fallocate(descriptor, 0, kind.itemsize * length)
        self._maps.append(mmap.mmap(descriptor, kind.itemsize * length))
        return np.frombuffer(self._maps[-1], dtype=kind)

    def let_go(self) -> None:
        """Leave what was written to the page cache, from which the system writes it to disk."""
        for each in self._maps:
            each.madvise(mmap.MADV_DONTNEED)

    def close(self, facts: Mapping[str, Any]) -> None:
        """Write the manifest, with ``facts`` in it. Flushing the folder to disk is left to whoever publishes it."""
        kinds = {name: (column.dtype.str, len(column)) for name, column in self.column.items()}
        self.column.clear()
        for each in self._maps:
            each.flush()
            each.close()
        columns = {}
        for name, (kind, length) in kinds.items():
            columns[name] = {"type": kind, "length": length, "sha256": sha256_of(self.folder / f"{name}.bin")}
        (self.folder / MANIFEST).write_text(json.dumps({**facts, "columns": columns}, indent=1) + "\n")


class Columns:
    """The columns of a folder, mapped for reading.

    Args:
        folder: made by :class:`ColumnWriter`.
        verify: read everything once and compare it with its checksum; lengths are compared always.

    Attributes:
        facts: the manifest.
        column: the columns by name, not writable.

    Raises:
        DataError: a file is missing, or is not what the manifest says.
    """

    def __init__(self, folder: Path, *, verify: bool) -> None:
        self.folder = folder
        self._maps: list[mmap.mmap] = []
        self._files: dict[str, BinaryIO] = {}
        self._touched = 0
        self._lock = threading.Lock()
        with self._damage_named(MANIFEST):
            self.facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
            said: dict[str, Any] = self.facts["columns"]
        self.column = {name: self._open(name, each, verify) for name, each in said.items()}

    def _open(self, name: str, said: Mapping[str, Any], verify: bool) -> np.ndarray:
        kind, length = np.dtype(said["type"]), said["length"]
        path = self.folder / f"{name}.bin"
        with self._damage_named(path.name):
            self._files[name] = file = path.open("rb", buffering=0)
            size = os.fstat(file.fileno()).st_size
            if size != kind.itemsize * length:
                raise ValueError(f"{size} bytes, and not {kind.itemsize * length}")
            if verify and sha256_of(path) != said["sha256"]:
                raise ValueError("its checksum is another")
            if size == 0:
                return np.empty(0, dtype=kind)
            self._maps.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        return np.frombuffer(self._maps[-1], dtype=kind)

    @contextmanager
    def _damage_named(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{self.folder / name}: damaged ({error}). It was derived from the data set: delete the folder "
                f"{self.folder}, and it is made again."
            ) from None

    def read(self, name: str, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """The runs ``[start, end)`` of a column, one after the other, copied from the page cache or the disk.

        Raises:
            DataError: the file has become shorter.
        """
        column = self.column[name]
        first, size = start * column.itemsize, (end - start) * column.itemsize
        to = np.concatenate([[0], np.cumsum(size)])
        values = np.empty(to[-1] // column.itemsize, dtype=column.dtype)
        target, descriptor = values.view(np.uint8).data, self._files[name].fileno()
        for at, low, high in zip(first.tolist(), to[:-1].tolist(), to[1:].tolist(), strict=True):
            while low < high:  # one call reads all, but need not
                got = os.preadv(descriptor, [target[low:high]], at)
                if got == 0:
                    with self._damage_named(f"{name}.bin"):
                        raise ValueError(f"it ends before byte {at}")
                low, at = low + got, at + got
        return values

    def looked_at(self, times: int) -> None:
        """Say that mapped columns were looked at in so many places; from time to time lets go of their pages."""
        with self._lock:
            self._touched += times * FAULT
            if self._touched < RESIDENT:
                return
            self._touched = 0
        for each in self._maps:
            each.madvise(mmap.MADV_DONTNEED)
