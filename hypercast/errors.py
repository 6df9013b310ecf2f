"""Errors of this package that a user can act on (see :mod:`streaming.errors`)."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streaming.errors import UserError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
"""What a disk says that is full, read-only or broken; other errors of the system are bugs."""


class RegistryError(UserError):
    """A snapshot or pin that does not exist, is damaged, or contradicts what was published before."""


class ConflictError(RegistryError):
    """Somebody else has moved the channel, or published, in between."""


class StoreError(UserError):
    """Embeddings that do not fit the store, or a store whose files are damaged."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read back exactly."""


@contextmanager
def told_of_the_disk(kind: type[UserError], root: Path) -> Iterator[None]:
    """Raise ``kind`` when what is written under ``root`` meets one of :data:`DISK`; any other error passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise kind(
            f"{root}: cannot be written ({os.strerror(error.errno)}: {error.filename or root}). What was published "
            "before is whole and can be read. Make room or make the folder writable, then do it again."
        ) from error
