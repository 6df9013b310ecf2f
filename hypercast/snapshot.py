"""One published version of a foundation model: a folder that is whole or invisible.

::

    0007/
      manifest.json           name, parent, watermark, schema hash, dims, dtype, tasks, metrics, file digests
      weights.safetensors
      READY                   SHA-256 of manifest.json; a folder without it is invisible
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

import hypercast.tensors
from hypercast.errors import RegistryError
from streaming import files


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One published version of a foundation model.

    Attributes:
        name: ``FM@0007``.
        lineage: ``FM``.
        version: 7.
        watermark: microseconds UTC: exclusive upper bound of every event time and label-known time it consumed (L3).
        path: its folder.
        manifest: everything that was said of it at publishing.
    """

    name: str
    lineage: str
    version: int
    watermark: int
    path: Path
    manifest: dict[str, Any]

    @property
    def dims(self) -> dict[str, int]:
        """Widths by name; the width of representation ``penultimate`` is ``dims["penultimate"]``."""
        return self.manifest["dims"]

    @property
    def dtype(self) -> str:
        """Dtype of the vectors that it publishes: ``float16`` or ``float32``."""
        return self.manifest["dtype"]

    @property
    def tasks(self) -> list[str]:
        """The tasks whose logits it publishes."""
        return self.manifest["tasks"]

    @staticmethod
    def open(path: Path) -> "Snapshot | None":
        """The snapshot in folder ``path``, or None if it is not READY.

        Raises:
            RegistryError: the manifest is missing or damaged.
        """
        try:
            expected = (path / "READY").read_text(encoding="utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        manifest_path = path / "manifest.json"
        try:
            if files.sha256_of(manifest_path) != expected:
                _damaged(manifest_path)
            manifest = json.loads(manifest_path.read_bytes())
        except FileNotFoundError:
            if (path / "READY").exists():
                _damaged(manifest_path)
            return None  # pruned between the two reads
        return Snapshot(
            name=manifest["name"],
            lineage=manifest["lineage"],
            version=manifest["version"],
            watermark=manifest["watermark"],
            path=path,
            manifest=manifest,
        )

    def load(self) -> dict[str, Tensor]:
        """The weights by name, on the CPU, after every file has been checked against its digest.

        Raises:
            RegistryError: a file is missing or differs from what was published; the message names it.
        """
        for name, expected in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file() or files.sha256_of(file) != expected:
                _damaged(file)
        return hypercast.tensors.load(self.path / "weights.safetensors")


def _damaged(file: Path) -> NoReturn:
    raise RegistryError(
        f"{file}: missing, or not what was published (its SHA-256 differs). Restore the file from a copy, or delete "
        f"{file.parent} and publish again."
    )
