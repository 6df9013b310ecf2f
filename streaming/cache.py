"""Where what can be made again is kept, for all processes of a machine."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streaming.errors import DataError


def cache_folder() -> Path:
    """``$HYPERCAST_CACHE``, or ``$XDG_CACHE_HOME/hypercast``, or ``~/.cache/hypercast``."""
    chosen = os.environ.get("HYPERCAST_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hypercast"


@contextmanager
def locked(folder: Path, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold the lock of ``folder``, which is made; the system lets go of it when the holder dies, however it dies.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise unwritable(folder, error) from None
    with file:
        fcntl.flock(file, kind)
        yield


def unwritable(path: Path, error: OSError) -> DataError:
    """What to say where something cannot be kept."""
    return DataError(
        f"{path}: what is made of a data set cannot be written there ({error.strerror}). Make room, or set "
        "HYPERCAST_CACHE to another folder, for example HYPERCAST_CACHE=/data/cache."
    )
