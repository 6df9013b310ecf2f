"""One writer at a time per folder, across processes. Readers need no lock: files are whole or absent."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the writer's lock of ``folder`` (created if need be); waits for another holder.

    The kernel lets go of the lock when the holder dies, however it dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
