"""Immutable files of tensors, each named by the SHA-256 of its bytes.

::

    ROOT/ab/ab12….safetensors
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from hypercast import tensors
from hypercast.errors import RegistryError
from streaming import files

REMEDY = (
    "Restore the file from a copy; or delete it and publish again: the next snapshot is then written in full. Until "
    "then read another snapshot."
)
"""What to do about a damaged file of weights."""


class Contents:
    """The files under one folder. Any number may read; one process at a time writes or sweeps."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Of the file that holds the content ``digest``, whether it is there or not."""
        return self.root / digest[:2] / f"{digest}.safetensors"

    def put(self, content: Mapping[str, Tensor]) -> tuple[str, int]:
        """Keep ``content`` and return its digest and the size of its file in bytes.

        A file that is there and whole is left as it is; a damaged one is replaced.
        """
        data = tensors.dump(content)
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if not (path.is_file() and files.sha256_of(path) == digest):
            for folder in (self.root, path.parent):
                if not folder.is_dir():
                    folder.mkdir(parents=True)
                    files.fsync_directory(folder.parent)
            files.write_bytes(path, data)
        return digest, len(data)

    def get(self, digest: str) -> dict[str, Tensor]:
        """The content ``digest``, from bytes that were checked before anything else looked at them.

        Raises:
            RegistryError: the file is missing or damaged; the message names it.
        """
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            damaged(path)
        if hashlib.sha256(data).hexdigest() != digest:
            damaged(path)
        return tensors.parse(data)

    def has(self, digest: str, size: int) -> bool:
        """Whether there is such a file of ``size`` bytes; whether it is whole only reading it tells."""
        path = self.path(digest)
        return path.is_file() and path.stat().st_size == size

    def digests(self) -> Iterator[str]:
        """Of all that is there, sorted."""
        return (path.stem for path in sorted(self.root.glob("*/*.safetensors")) if not path.name.startswith("."))

    def clean(self) -> None:
        """Remove the left-overs of killed writers."""
        for path in self.root.glob("*/.*"):
            path.unlink()

    def sweep(self, used: set[str]) -> int:
        """Remove everything but ``used``, left-overs of killed writers too; bytes freed."""
        freed = 0
        for path in sorted(self.root.glob("*/*")):
            if path != self.path(path.stem) or path.stem not in used:
                freed += path.stat().st_size
                path.unlink()
        return freed


def damaged(path: Path) -> NoReturn:
    """Refuse a file of weights that is not what was published.

    Raises:
        RegistryError: always.
    """
    raise RegistryError(f"{path}: missing, or not what was published (its SHA-256 differs). {REMEDY}")
