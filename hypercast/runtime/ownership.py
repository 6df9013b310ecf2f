"""Folders that one process at a time may write to, for as long as it lives.

::

    RUN/locks/run                    held by the process of `hypercast run`
    RUN/locks/jobs/foundation        by the job that trains it
    RUN/locks/jobs/experts/SURFACE   by the job that trains its experts

The kernel lets go of a lock when its holder dies, however it dies. So a job that was started anew waits until the one
before it is gone for good: a process that its driver has lost sight of can never write beside its successor.
"""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from streaming.errors import UserError

_PAUSE = 0.05


class OwnershipError(UserError):
    """Another process that is alive owns what this one wants to write."""


def own(lock: Path, *, patience: float) -> IO[str]:
    """Hold ``lock``, a file that is made if absent, until what is returned is closed or this process ends.

    Args:
        lock: on a file system that all machines of the run share.
        patience: seconds to wait for another holder.

    Raises:
        OwnershipError: somebody else still holds it; the message names the process.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = lock.open("a+", encoding="utf-8")
    deadline = time.monotonic() + patience
    while not _locked(file):
        if time.monotonic() > deadline:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise OwnershipError(
                f"{lock}: another process works in this folder ({holder}) and has not ended within {patience:g} s. "
                "Wait for it or end it, or give another folder: hypercast run PLATFORM.yaml --run runs/second"
            )
        time.sleep(_PAUSE)
    file.truncate(0)  # in append mode what follows is written at the end
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
