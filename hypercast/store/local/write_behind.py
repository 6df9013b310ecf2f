"""The disk begins while the rest is still being computed: publishing takes the longer of the two, not the sum."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO, Self

EVERY_BYTES = 16 << 20


class WriteBehind:
    """Wraps a file that is written from beginning to end; what follows the block must still flush and sync it.

    ``with WriteBehind(file) as behind: behind.write(data)``. An error of the disk is raised by a later ``write``, or at
    the end of the block: the system reports it only once, so it must not be lost here.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write-behind")
        self._syncing: Future[None] | None = None
        self._waiting = 0

    def write(self, data: memoryview) -> None:
        """Append ``data``, which may be overwritten afterwards."""
        self._file.write(data)
        self._waiting += data.nbytes
        if self._waiting >= EVERY_BYTES and (self._syncing is None or self._syncing.done()):
            self._wait()
            self._syncing, self._waiting = self._pool.submit(os.fdatasync, self._file.fileno()), 0

    def _wait(self) -> None:
        if self._syncing is not None:
            self._syncing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if error is None:
            self._wait()
