"""One published version of a foundation model: a folder that is whole or invisible.

::

    ROOT/
      FM/0007/
        manifest.json         name, parent, watermark, schema hash, dims, dtype, tasks, metrics; for each tensor the
                              objects that it is made of (hypercast.objects.weights)
        READY                 SHA-256 of manifest.json; a folder without it is invisible
      objects/ab/ab12….safetensors
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hypercast.errors import RegistryError
from hypercast.objects import weights
from hypercast.objects.contents import Contents
from hypercast.objects.weights import Weights
from streaming import files

OBJECTS = "objects"
FORMAT = 2


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
        """Codec of the vectors that it publishes, one of :data:`hypercast.codec.rows.NAMES`."""
        return self.manifest["dtype"]

    @property
    def tasks(self) -> list[str]:
        """The tasks whose logits it publishes."""
        return self.manifest["tasks"]

    @property
    def weights(self) -> Weights:
        """Which objects its tensors are made of."""
        return Weights.from_json(self.manifest)

    @property
    def share_written(self) -> float:
        """Bytes that its publish added, of those that its tensors take: 1 for the first, less with each that refers."""
        return self.manifest["bytes_written"] / max(1, self.manifest["bytes_total"])

    @staticmethod
    def open(path: Path) -> "Snapshot | None":
        """The snapshot in folder ``path``, or None if it is not READY.

        Raises:
            RegistryError: the manifest or READY is missing or damaged, or another version of this program wrote them.
        """
        try:
            expected = (path / "READY").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        manifest_path = path / "manifest.json"
        try:
            data = manifest_path.read_bytes()
        except FileNotFoundError:
            if not (path / "READY").exists():
                return None  # pruned between the two reads
            data = b""
        if hashlib.sha256(data).hexdigest().encode() != expected:
            raise RegistryError(
                f"{manifest_path}: missing, or not what was published (READY beside it has another SHA-256). "
                f"{MANIFEST_REMEDY}"
            )
        manifest = json.loads(data)
        if manifest.get("format") != FORMAT:
            raise RegistryError(
                f"{manifest_path}: format {manifest.get('format', 1)}, readable is {FORMAT}: another version of this "
                f"program wrote it. Read {path.parent} with that version, or start anew in another folder."
            )
        return Snapshot(
            name=manifest["name"],
            lineage=manifest["lineage"],
            version=manifest["version"],
            watermark=manifest["watermark"],
            path=path,
            manifest=manifest,
        )

    def load(self) -> dict[str, Tensor]:
        """The weights by name, on the CPU: the very bits that were published, every object checked by its digest.

        Raises:
            RegistryError: an object is missing or differs from what was published (the message names its file), or the
                snapshot has been pruned meanwhile.
        """
        try:
            return weights.read(Contents(self.path.parents[1] / OBJECTS), self.weights.components)
        except RegistryError:
            if not (self.path / "READY").exists():
                raise RegistryError(f"{self.path}: {self.name} has been pruned meanwhile. Read a newer one.") from None
            raise


MANIFEST_REMEDY = "Restore the two from a copy, or delete the folder and publish again."
"""What to do about a damaged manifest."""


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Fill the empty ``folder`` so that :meth:`Snapshot.open` finds ``manifest`` in it."""
    data = (json.dumps({"format": FORMAT, **manifest}, indent=2) + "\n").encode()
    (folder / "manifest.json").write_bytes(data)
    (folder / "READY").write_bytes(hashlib.sha256(data).hexdigest().encode())


def versions(lineage: Path) -> list[Path]:
    """Folders of versions by number, whether READY or not."""
    if not lineage.is_dir():
        return []
    return sorted((path for path in lineage.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def hide(snapshot: Snapshot) -> None:
    """Take a snapshot out of sight in one step, so that no reader finds half a folder; :func:`clean` removes it."""
    snapshot.path.rename(snapshot.path.with_name(f".{snapshot.path.name}.removed"))
    files.fsync_directory(snapshot.path.parent)


def clean(lineage: Path) -> None:
    """Remove what killed writers left: hidden names only, never a version. The caller holds the lock."""
    for path in [*lineage.glob(".*"), *lineage.glob("channels/.*")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
