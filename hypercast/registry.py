"""The registry of foundation-model snapshots: immutable, content-addressed, published atomically.

::

    ROOT/
      FM/                         a lineage: one model, trained continually
        0007/                     a version; the snapshot is named FM@0007 (hypercast.snapshot)
        channels/latest.json      the newest version; other channels are moved by hand (hypercast.objects.channels)
      objects/ab/ab12….safetensors    what weights are made of, shared by snapshots (hypercast.objects.weights)
      pins/EXPERT.json            which snapshot an expert reads from (hypercast.pins)
"""

import json
import logging
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor

import hypercast.tensors
from hypercast import pins
from hypercast import snapshot as snapshots
from hypercast.codec import rows
from hypercast.errors import ConflictError, RegistryError, told_of_the_disk
from hypercast.lock import exclusive
from hypercast.objects import channels, weights
from hypercast.objects.catalogue import RESERVED, Catalogue
from hypercast.objects.channels import LATEST
from hypercast.pins import Pin, check_name, snapshot_name
from hypercast.snapshot import Snapshot
from streaming import files

_SAID_OF_VECTORS = ("schema_hash", "dims", "dtype", "tasks")
"""Facts that decide what a snapshot publishes: the same weights under others are not the same snapshot."""

_logger = logging.getLogger(__name__)


class Registry(Catalogue):
    """Snapshots by lineage, channels, and the pins of experts, under one folder.

    Any number of processes may read while one publishes; writers wait for each other.
    """

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
        only_after_parent: bool = False,
    ) -> Snapshot:
        """Publish the next version of ``lineage``; the same weights at the same watermark return what exists.

        Only what has changed since ``parent`` is written (:mod:`hypercast.objects.weights`).

        Args:
            lineage: a letter followed by letters, digits, ``_`` or ``-``.
            tensors: weights by name.
            watermark: microseconds UTC, see :class:`Snapshot`. Grows from version to version.
            schema_hash: digest of the data set's configuration.
            dims: widths by name, one for each representation that is published (``{"penultimate": 64}``).
            dtype: codec of the published vectors, one of :data:`hypercast.codec.rows.NAMES`.
            tasks: tasks whose logits are published.
            metrics: JSON-able numbers by name.
            parent: name of the snapshot that training went on from; None for the first.
            metadata: anything else, JSON-able.
            only_after_parent: refuse unless ``parent`` is still the newest of the lineage (None: unless the lineage
                is empty), so that of several writers that went on from one snapshot one wins.

        Raises:
            ConflictError: ``only_after_parent``, and somebody else has published in between. Nothing was written.
            RegistryError: a bad name, an unknown parent, other weights at a known watermark, or the same with other
                dims, dtype, tasks or schema; a watermark in the past, damage, or a disk that is full or read-only.
        """
        check_name(lineage, what="lineage")
        if lineage in RESERVED:
            raise RegistryError(f"lineage {lineage!r} is a reserved name; reserved are {RESERVED}. Example: 'FM'.")
        if dtype not in rows.NAMES:
            raise RegistryError(f"lineage {lineage}: dtype {dtype!r} of its vectors: allowed are {rows.NAMES}.")
        if not tensors:
            raise RegistryError(f"lineage {lineage}: no weights to publish. Pass the model's state_dict() as tensors.")
        digests = hypercast.tensors.digests(tensors)
        facts = {
            "parent": parent,
            "watermark": operator.index(watermark),
            "schema_hash": schema_hash,
            "dims": dict(dims),
            "dtype": dtype,
            "tasks": list(tasks),
            "metrics": dict(metrics),
            "metadata": dict(metadata),
            "weights_digest": hypercast.tensors.digest_of_digests(digests),
            "bytes_total": sum(tensor.nbytes for tensor in tensors.values()),
        }
        _check_json(lineage, facts)
        with self._writing(lineage):
            known = self.list(lineage)
            latest = channels.read(self.root, lineage, LATEST)
            same = next((snapshot for snapshot in known if snapshot.watermark == watermark), None)
            if same is not None and same.manifest["weights_digest"] == facts["weights_digest"]:
                _check_same(same, facts)
                # A writer killed between the folder and the channel leaves the channel one behind.
                if known[-1].version > latest.reached:
                    channels.write(self.root, latest.to(known[-1].name))
                return same
            newest = known[-1].name if known else None
            if only_after_parent and parent != newest:
                raise ConflictError(
                    f"lineage {lineage}: the newest snapshot is {newest}, not {parent}, from which this training went "
                    "on: somebody else has published. Go on from the newest, or publish under another lineage."
                )
            base = self._parent(lineage, parent, watermark=watermark, known=known, same=same)
            version = 1 + max((int(path.name) for path in snapshots.versions(self.root / lineage)), default=0)
            written = weights.write(self.contents, tensors, digests=digests, parent=base)
            name = snapshot_name(lineage, version)
            identity = {"name": name, "lineage": lineage, "version": version}
            manifest = identity | facts | {"bytes_written": written.bytes_beyond(base)} | written.to_json()
            path = self.root / lineage / f"{version:04d}"
            files.write_directory(path, lambda partial: snapshots.write(partial, manifest))
            if not known:
                files.fsync_directory(self.root)
            channels.write(self.root, latest.to(name))
            snapshot = self.get(name)
            _logger.info("%s published, %.1f %% of its weights written", snapshot.name, 100 * snapshot.share_written)
            return snapshot

    def _parent(
        self, lineage: str, parent: str | None, *, watermark: int, known: Sequence[Snapshot], same: Snapshot | None
    ) -> weights.Weights:
        """The weights to refer to, if the order of watermarks allows the next version."""
        if same is not None:
            raise RegistryError(
                f"{same.name} has the same watermark {watermark} but other weights: a snapshot is never overwritten. "
                f"Publish under another lineage, or delete {same.path} if it was a mistake and no expert reads from it."
            )
        if known and watermark < known[-1].watermark:
            raise RegistryError(
                f"lineage {lineage}: watermark {watermark} is before {known[-1].watermark} of {known[-1].name}. "
                "Watermarks grow from version to version: start another lineage to train on earlier data."
            )
        if parent is None:
            return weights.NOTHING
        snapshot = self.get(parent)
        if snapshot.watermark > watermark:
            raise RegistryError(f"lineage {lineage}: watermark {watermark} is before that of its parent {parent}.")
        return snapshot.weights

    def move(self, lineage: str, channel: str, *, expected: str | None, to: str | None) -> None:
        """Let ``channel`` point to the snapshot ``to`` (None removes it), if it points to ``expected`` now.

        Args:
            lineage: ``FM``.
            channel: any name; ``latest`` is moved by every publish and cannot be removed.
            expected: name of the snapshot that the mover believes it to point to; None: there is no such channel.
            to: name of a snapshot of this lineage.

        Raises:
            ConflictError: it points to something else; of several movers one wins.
            RegistryError: a bad name, or no such snapshot of this lineage.
        """
        if to is None and channel == LATEST:
            raise RegistryError(f"channel {lineage}/{LATEST} cannot be removed: publishing moves it.")
        if to is not None and pins.parse_snapshot_name(to)[0] != lineage:
            raise RegistryError(f"channel {lineage}/{channel} points to snapshots of {lineage}, never to {to}.")
        with self._writing(lineage):
            before = channels.read(self.root, lineage, channel)
            before.expect(expected)
            if to is not None:
                self.get(to)
                channels.write(self.root, before.to(to))
            elif before.history:
                channels.remove(self.root, before)

    def rollback_channel(self, lineage: str, channel: str) -> Snapshot:
        """Let ``channel`` point again to what it pointed to before its last move, and forget that move.

        Raises:
            RegistryError: it has pointed to nothing else, or that snapshot is gone.
        """
        with self._writing(lineage):
            before = channels.read(self.root, lineage, channel).back()
            snapshot = self.get(before.history[-1])
            channels.write(self.root, before)
            return snapshot

    def prune(self, lineage: str, *, keep: int) -> Sequence[str]:
        """Remove all but the ``keep`` newest snapshots and return the names of the removed.

        Those that a channel points to, that an expert is pinned to, and that a rollback of either would return to
        stay. Objects that no snapshot of any lineage needs any more go too.
        """
        if keep < 1:
            raise RegistryError(f"prune {lineage}: keep must be at least 1, got {keep}.")
        with self._writing(lineage):
            known = self.list(lineage)
            kept = {snapshot.name for snapshot in known[-keep:]}
            kept |= {pin.target for expert in pins.experts(self.root) for pin in pins.read(self.root, expert)[-2:]}
            for name in channels.names(self.root, lineage):
                kept |= set(channels.read(self.root, lineage, name).history[-2:])
            removed = {snapshot.name: snapshot for snapshot in known if snapshot.name not in kept}
            # Everything is read before anything goes: a manifest that cannot be read says not what it needs.
            everything = [snapshot for each in self.lineages() for snapshot in self.list(each)]
            remaining = [snapshot for snapshot in everything if snapshot.name not in removed]
            used = {digest for snapshot in remaining for digest in snapshot.weights.objects}
            for snapshot in removed.values():
                snapshots.hide(snapshot)
            snapshots.clean(self.root / lineage)
            self.contents.sweep(used)
            return [*removed]

    def pin(self, expert: str, *, lineage: str, version: int | None = None) -> Pin:
        """Tie ``expert`` to ``lineage``, to one ``version`` of it or, with None, to its newest as it goes.

        Widths and dtype of the vectors are recorded now and held from then on.

        Raises:
            RegistryError: a bad name, or no such version.
        """
        return self.pin_together([expert], lineage=lineage, version=version)[0]

    def pin_together(self, experts: Sequence[str], *, lineage: str, version: int | None = None) -> list[Pin]:
        """:meth:`pin` of all ``experts``, or of none where it cannot be."""
        check_name(lineage, what="lineage")
        with self._writing():
            histories = {expert: pins.read(self.root, expert) for expert in experts}
            published = self.list(lineage) if version is None else [self.get(snapshot_name(lineage, version))]
            pinned = []
            for expert, history in histories.items():
                pin = Pin(
                    expert=expert,
                    lineage=lineage,
                    version=version,
                    dims=published[-1].dims if published else None,
                    dtype=published[-1].dtype if published else None,
                )
                if not history or history[-1] != pin:
                    pins.write(self.root, expert, [*history, pin])
                pinned.append(pin)
            return pinned

    def tie(self, expert: str, *, lineage: str) -> Pin:
        """The pin of ``expert``: a new one follows ``lineage``, an old one stays where it was put."""
        if expert in pins.experts(self.root):
            return self.pinned(expert)
        return self.pin(expert, lineage=lineage)

    def rollback(self, expert: str) -> Pin:
        """Return ``expert`` to the pin it had before, and forget the present one.

        Raises:
            RegistryError: it has no earlier pin, or the snapshot of that pin is gone.
        """
        return self.rollback_together([expert])[0]

    def rollback_together(self, experts: Sequence[str]) -> list[Pin]:
        """:meth:`rollback` of all ``experts``, or of none where it cannot be.

        Raises:
            RegistryError: as there, or they were not pinned alike before.
        """
        with self._writing():
            earlier = {}
            for expert in experts:
                self.pinned(expert)
                earlier[expert] = pins.read(self.root, expert)[:-1]
                if not earlier[expert]:
                    raise RegistryError(f"{self.root}: expert {expert!r} has had one pin only: nothing to go back to.")
            found = [history[-1] for history in earlier.values()]
            if len({pin.target for pin in found}) > 1:
                apart = ", ".join(f"{pin.expert} to {pin.target}" for pin in found)
                raise RegistryError(
                    f"{self.root}: these share a pin, and were pinned apart before: {apart}. Give them a pin instead: "
                    f"hypercast expert pin {experts[0]}."
                )
            if found[0].version is not None:
                self.get(found[0].target)
            for expert, history in earlier.items():
                pins.write(self.root, expert, history)
            return found

    def _clean(self, lineage: str | None) -> None:
        if lineage is not None:
            snapshots.clean(self.root / check_name(lineage, what="lineage"))
            self.contents.clean()

    @contextmanager
    def _writing(self, lineage: str | None = None) -> Iterator[None]:
        """Hold the writer's lock, without the left-overs of the killed in ``lineage``.

        Raises:
            RegistryError: the disk is full, read-only or broken. Left-overs are removed if it lets us.
        """
        with told_of_the_disk(RegistryError, self.root), exclusive(self.root):
            try:
                self._clean(lineage)
                yield
            except OSError:
                with suppress(OSError):
                    self._clean(lineage)
                raise


def _check_same(same: Snapshot, facts: Mapping[str, Any]) -> None:
    for name in _SAID_OF_VECTORS:
        if same.manifest[name] != facts[name]:
            raise RegistryError(
                f"{same.name} was published of the same weights with {name} {same.manifest[name]!r}, not "
                f"{facts[name]!r}: a snapshot is never overwritten. Publish as before, or under another lineage."
            )


def _check_json(lineage: str, facts: Mapping[str, Any]) -> None:
    try:
        json.dumps(facts)
    except TypeError as error:
        raise RegistryError(
            f"lineage {lineage}: metrics, dims and metadata must be JSON values ({error}). "
            "Example: metrics={'ne': float(ne)}."
        ) from None
