"""The registry of foundation-model snapshots: immutable, content-addressed, published atomically.

::

    ROOT/
      FM/                         a lineage: one model, trained continually
        0007/                     a version; the snapshot is named FM@0007 (hypercast.snapshot)
        CURRENT                   "0007": the newest version, moved by rename
      pins/EXPERT.json            which snapshot an expert reads from (hypercast.pins)
"""

import json
import operator
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import hypercast.tensors
from hypercast import pins
from hypercast.errors import RegistryError
from hypercast.lock import exclusive
from hypercast.pins import Pin, check_name, snapshot_name
from hypercast.snapshot import Snapshot
from streaming import files

RESERVED = ("pins", "segments", "online")


class Registry:
    """Snapshots by lineage, and the pins of experts, under one folder.

    Any number of processes may read while one publishes; writers wait for each other.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def publish(
        self,
        *,
        lineage: str,
        tensors: Mapping[str, Tensor],
        watermark: int,
        schema_hash: str,
        dims: Mapping[str, int],
        dtype: str,
        tasks: Sequence[str],
        metrics: Mapping[str, float],
        parent: str | None,
        metadata: Mapping[str, Any],
    ) -> Snapshot:
        """Publish the next version of ``lineage``; the same weights at the same watermark return what exists.

        Args:
            lineage: a letter followed by letters, digits, ``_`` or ``-``.
            tensors: weights by name.
            watermark: microseconds UTC, see :class:`Snapshot`. Grows from version to version.
            schema_hash: digest of the data set's configuration.
            dims: widths by name, one for each representation that is published (``{"penultimate": 64}``).
            dtype: dtype of the published vectors, ``float16`` or ``float32``.
            tasks: tasks whose logits are published.
            metrics: JSON-able numbers by name.
            parent: name of the snapshot that training went on from; None for the first.
            metadata: anything else, JSON-able.

        Raises:
            RegistryError: a bad name, an unknown parent, other weights at a known watermark, a watermark in the past.
        """
        check_name(lineage, what="lineage")
        if lineage in RESERVED:
            raise RegistryError(f"lineage {lineage!r} is a reserved name; reserved are {RESERVED}. Example: 'FM'.")
        if dtype not in ("float16", "float32"):
            raise RegistryError(f"lineage {lineage}: dtype {dtype!r} of its vectors: allowed are 'float16', 'float32'.")
        if not tensors:
            raise RegistryError(f"lineage {lineage}: no weights to publish. Pass the model's state_dict() as tensors.")
        watermark = operator.index(watermark)
        digest = hypercast.tensors.digest(tensors)
        with exclusive(self.root):
            folder = self.root / lineage
            folder.mkdir(exist_ok=True)
            _clean(folder)
            known = self.list(lineage)
            for snapshot in known:
                if snapshot.watermark == watermark:
                    return self._again(snapshot, known[-1], digest)
            if known and watermark < known[-1].watermark:
                raise RegistryError(
                    f"lineage {lineage}: watermark {watermark} is before {known[-1].watermark} of {known[-1].name}. "
                    "Watermarks grow from version to version: start another lineage to train on earlier data."
                )
            if parent is not None and self.get(parent).watermark > watermark:
                raise RegistryError(f"lineage {lineage}: watermark {watermark} is before that of its parent {parent}.")
            version = 1 + max((int(path.name) for path in _versions(folder)), default=0)
            manifest: dict[str, Any] = {
                "name": snapshot_name(lineage, version),
                "lineage": lineage,
                "version": version,
                "parent": parent,
                "watermark": watermark,
                "schema_hash": schema_hash,
                "dims": dict(dims),
                "dtype": dtype,
                "tasks": list(tasks),
                "metrics": dict(metrics),
                "metadata": dict(metadata),
                "weights_digest": digest,
            }
            path = folder / f"{version:04d}"
            files.write_directory(path, lambda partial: _write(partial, tensors, manifest))
            files.write_text(folder / "CURRENT", path.name)
            return self.get(manifest["name"])

    def _again(self, existing: Snapshot, newest: Snapshot, digest: str) -> Snapshot:
        if existing.manifest["weights_digest"] != digest:
            raise RegistryError(
                f"{existing.name} has the same watermark {existing.watermark} but other weights: a snapshot is never "
                "overwritten. Publish under another lineage, or delete "
                f"{existing.path} if it was a mistake and no expert reads from it."
            )
        # A writer killed between the folder and the pointer leaves the pointer one behind.
        files.write_text(newest.path.parent / "CURRENT", newest.path.name)
        return existing

    def lineages(self) -> Sequence[str]:
        """Names of all lineages that have a snapshot, sorted."""
        if not self.root.is_dir():
            return []
        names = sorted(path.name for path in self.root.iterdir() if path.is_dir() and pins.NAME.fullmatch(path.name))
        return [name for name in names if name not in RESERVED and self.list(name)]

    def list(self, lineage: str) -> Sequence[Snapshot]:
        """All snapshots of ``lineage`` by version (and so by watermark); empty if there is none."""
        found = [Snapshot.open(path) for path in _versions(self.root / check_name(lineage, what="lineage"))]
        return [snapshot for snapshot in found if snapshot is not None]

    def get(self, name: str) -> Snapshot:
        """The snapshot called ``name``.

        Raises:
            RegistryError: there is none; the message lists those that there are.
        """
        lineage, version = pins.parse_snapshot_name(name)
        snapshot = Snapshot.open(self.root / lineage / f"{version:04d}")
        if snapshot is None:
            raise RegistryError(f"{self.root}: no snapshot {name}. {self._available(lineage)}")
        return snapshot

    def current(self, lineage: str) -> Snapshot:
        """The snapshot that CURRENT points to: the newest.

        Raises:
            RegistryError: the lineage has published nothing.
        """
        try:
            version = (self.root / check_name(lineage, what="lineage") / "CURRENT").read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RegistryError(f"{self.root}: no snapshot of {lineage!r}. {self._available(lineage)}") from None
        return self.get(f"{lineage}@{version}")

    def latest(self, lineage: str, *, as_of: int) -> Snapshot:
        """The snapshot with the largest watermark that is not later than ``as_of`` (microseconds UTC): law L3.

        Raises:
            RegistryError: there is none.
        """
        snapshots = [snapshot for snapshot in self.list(lineage) if snapshot.watermark <= as_of]
        if not snapshots:
            raise RegistryError(
                f"{self.root}: no snapshot of {lineage!r} with a watermark up to {as_of}. {self._available(lineage)}"
            )
        return max(snapshots, key=lambda snapshot: snapshot.watermark)

    def prune(self, lineage: str, *, keep: int) -> Sequence[str]:
        """Remove all but the ``keep`` newest snapshots and return the names of the removed.

        The current one, those that an expert is pinned to, and those that a rollback would return to stay.
        """
        if keep < 1:
            raise RegistryError(f"prune {lineage}: keep must be at least 1, got {keep}.")
        with exclusive(self.root):
            snapshots = self.list(lineage)
            kept = {snapshot.name for snapshot in snapshots[-keep:]}
            kept |= {pin.target for expert in pins.experts(self.root) for pin in pins.read(self.root, expert)[-2:]}
            if snapshots:
                kept.add(self.current(lineage).name)
            removed = [snapshot for snapshot in snapshots if snapshot.name not in kept]
            for snapshot in removed:
                # Out of sight in one step, so that no reader finds half a folder.
                snapshot.path.rename(snapshot.path.with_name(f".{snapshot.path.name}.removed"))
            if snapshots:
                _clean(self.root / lineage)
            return [snapshot.name for snapshot in removed]

    def pin(self, expert: str, *, lineage: str, version: int | None = None) -> Pin:
        """Tie ``expert`` to ``lineage``, to one ``version`` of it or, with None, to its newest as it goes.

        Widths and dtype of the vectors are recorded now and held from then on.

        Raises:
            RegistryError: a bad name, or no such version.
        """
        check_name(lineage, what="lineage")
        with exclusive(self.root):
            history = pins.read(self.root, expert)
            published = self.list(lineage) if version is None else [self.get(snapshot_name(lineage, version))]
            pin = Pin(
                expert=expert,
                lineage=lineage,
                version=version,
                dims=published[-1].dims if published else None,
                dtype=published[-1].dtype if published else None,
            )
            if not history or history[-1] != pin:
                pins.write(self.root, expert, [*history, pin])
            return pin

    def pinned(self, expert: str) -> Pin:
        """The pin of ``expert`` that holds.

        Raises:
            RegistryError: the expert was never pinned.
        """
        history = pins.read(self.root, expert)
        if not history:
            raise RegistryError(
                f"{self.root}: expert {expert!r} is not pinned; pinned are {pins.experts(self.root)}. "
                f"Pin it: hypercast expert pin {expert} --lineage FM."
            )
        return history[-1]

    def rollback(self, expert: str) -> Pin:
        """Return ``expert`` to the pin it had before, and forget the present one.

        Raises:
            RegistryError: it has no earlier pin, or the snapshot of that pin is gone.
        """
        with exclusive(self.root):
            self.pinned(expert)
            history = pins.read(self.root, expert)[:-1]
            if not history:
                raise RegistryError(f"{self.root}: expert {expert!r} has had one pin only: nothing to go back to.")
            if history[-1].version is not None:
                self.get(history[-1].target)
            pins.write(self.root, expert, history)
            return history[-1]

    def _available(self, lineage: str) -> str:
        names = ", ".join(f"{snapshot.name} (watermark {snapshot.watermark})" for snapshot in self.list(lineage))
        if names:
            return f"There are: {names}."
        return f"Lineages with snapshots: {self.lineages()}. Train one: hypercast run PLATFORM.yaml."


def _versions(folder: Path) -> list[Path]:
    """Folders of versions by number, whether READY or not."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def _write(folder: Path, tensors: Mapping[str, Tensor], manifest: dict[str, Any]) -> None:
    weights = folder / "weights.safetensors"
    hypercast.tensors.save(weights, tensors)
    manifest = {**manifest, "files": {weights.name: files.sha256_of(weights)}}
    try:
        text = json.dumps(manifest, indent=2)
    except TypeError as error:
        raise RegistryError(
            f"lineage {manifest['lineage']}: metrics, dims and metadata must be JSON values ({error}). "
            "Example: metrics={'ne': float(ne)}."
        ) from None
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
    (folder / "READY").write_text(files.sha256_of(folder / "manifest.json"), encoding="utf-8")


def _clean(folder: Path) -> None:
    """Remove what killed writers left: hidden names only, never a version. The caller holds the lock."""
    for path in folder.glob(".*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
