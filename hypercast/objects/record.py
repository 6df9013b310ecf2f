"""Small JSON files that know their own digest: a flipped byte is found whenever one is read."""

import hashlib
import json
from pathlib import Path
from typing import Any

from hypercast.errors import RegistryError
from streaming import files


def write(path: Path, value: dict[str, Any]) -> None:
    """Atomically replace ``path`` by ``value``, JSON-able and without a key ``sha256``."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True)
        files.fsync_directory(path.parent.parent)
    files.write_bytes(path, _dump(value))


def read(path: Path, *, remedy: str) -> dict[str, Any]:
    """What :func:`write` wrote.

    Args:
        path: the file.
        remedy: last sentence of the error.

    Raises:
        FileNotFoundError: there is no such file.
        RegistryError: its bytes are not those that were written.
    """
    data = path.read_bytes()
    try:
        value = json.loads(data)
        del value["sha256"]
        whole = _dump(value) == data
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise RegistryError(f"{path}: not what was written (its SHA-256 differs). {remedy}")
    return value


def _dump(value: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(value, indent=2).encode()).hexdigest()
    return (json.dumps({**value, "sha256": digest}, indent=2) + "\n").encode()
