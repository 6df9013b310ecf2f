"""Rows that wait on disk: first as they come, then by window of event time.

Files are Arrow IPC streams, LZ4 compressed. A window has a file of several streams one after the other, so that any
number of windows can grow at once without as many open files.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int = npt.NDArray[np.int64]
OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")
BUFFER_BYTES = 16 << 20


class Spill:
    """Rows in the order in which they come. Close it before reading.

    Args:
        file: a new file.
    """

    def __init__(self, *, file: Path, schema: pa.Schema) -> None:
        self.file = file
        self.schema = schema
        self.rows = 0
        self._writer = pa.ipc.new_stream(str(file), schema, options=OPTIONS)

    def add(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows again."""
        with self.file.open("rb") as file, pa.ipc.open_stream(file) as stream:
            yield from stream


class Partitions:
    """Rows by window.

    Args:
        folder: where a file a window goes.
        boundaries: n + 1 ascending times in microseconds; window i covers [boundary i, boundary i + 1).
    """

    def __init__(self, *, folder: Path, schema: pa.Schema, boundaries: Int) -> None:
        self.schema = schema
        self.rows = np.zeros(len(boundaries) - 1, dtype=np.int64)
        self._folder = folder
        self._boundaries = boundaries
        self._waiting: dict[int, list[pa.RecordBatch]] = {}
        self._bytes = 0
        folder.mkdir(parents=True)

    def add(self, batch: pa.RecordBatch) -> None:
        """Rows with a column ``time`` inside the boundaries; those of a window keep their order."""
        window = np.searchsorted(self._boundaries, batch.column("time").to_numpy(), side="right") - 1
        if window.min() != window.max():
            order = np.argsort(window, kind="stable")
            window, batch = window[order], batch.take(pa.array(order))
        found, first, count = np.unique(window, return_index=True, return_counts=True)
        for index, start, size in zip(found.tolist(), first.tolist(), count.tolist(), strict=True):
            self._waiting.setdefault(index, []).append(batch.slice(start, size))
            self.rows[index] += size
        self._bytes += batch.nbytes
        if self._bytes > BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits in memory."""
        for index, batches in self._waiting.items():
            table = pa.Table.from_batches(batches, schema=self.schema).combine_chunks()
            with self._file(index).open("ab") as file, pa.ipc.new_stream(file, self.schema, options=OPTIONS) as stream:
                stream.write_table(table)
        self._waiting, self._bytes = {}, 0

    def window(self, index: int) -> pa.Table:
        """All rows of a window, in the order in which they came."""
        tables = []
        if self._file(index).exists():
            with self._file(index).open("rb") as file:
                size = self._file(index).stat().st_size
                while file.tell() < size:
                    tables.append(pa.ipc.open_stream(file).read_all())
        return pa.concat_tables([self.schema.empty_table(), *tables]).combine_chunks()

    def _file(self, index: int) -> Path:
        return self._folder / f"{index:05d}.arrows"


def partition(spill: Spill, *, folder: Path, boundaries: Int) -> Partitions:
    """Sort a spill's rows by window; its own file is deleted."""
    partitions = Partitions(folder=folder, schema=spill.schema, boundaries=boundaries)
    for batch in spill.batches():
        if batch.num_rows:
            partitions.add(batch)
    partitions.flush()
    spill.file.unlink()
    return partitions
