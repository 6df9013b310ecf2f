"""Reading a registry: snapshots by name, by time and by channel, and the pins of experts. Needs no lock."""

from collections.abc import Sequence
from pathlib import Path

from hypercast import pins
from hypercast import snapshot as snapshots
from hypercast.errors import RegistryError
from hypercast.objects import channels, damage
from hypercast.objects.channels import LATEST
from hypercast.objects.contents import Contents
from hypercast.pins import Pin, check_name
from hypercast.snapshot import OBJECTS, Snapshot
from hypercast.store.engine import Damage

RESERVED = (OBJECTS, "pins", "segments", "online")


class Catalogue:
    """What is under one folder; :class:`hypercast.registry.Registry` adds writing."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.contents = Contents(self.root / OBJECTS)

    def lineages(self) -> Sequence[str]:
        """Names of all lineages that have a snapshot, sorted."""
        return [name for name in self._folders() if self.list(name)]

    def list(self, lineage: str) -> Sequence[Snapshot]:
        """All snapshots of ``lineage`` by version (and so by watermark); empty if there is none."""
        paths = snapshots.versions(self.root / check_name(lineage, what="lineage"))
        return [snapshot for snapshot in map(Snapshot.open, paths) if snapshot is not None]

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

    def latest(self, lineage: str, *, as_of: int) -> Snapshot:
        """The snapshot with the largest watermark that is not later than ``as_of`` (microseconds UTC): law L3.

        Raises:
            RegistryError: there is none.
        """
        found = [snapshot for snapshot in self.list(lineage) if snapshot.watermark <= as_of]
        if not found:
            raise RegistryError(
                f"{self.root}: no snapshot of {lineage!r} with a watermark up to {as_of}. {self._available(lineage)}"
            )
        return max(found, key=lambda snapshot: snapshot.watermark)

    def channels(self, lineage: str) -> dict[str, str]:
        """Name of the snapshot that each channel of ``lineage`` points to, by channel."""
        check_name(lineage, what="lineage")
        found = {name: channels.read(self.root, lineage, name).target for name in channels.names(self.root, lineage)}
        return {name: target for name, target in found.items() if target is not None}

    def channel(self, lineage: str, name: str) -> Snapshot:
        """The snapshot that a channel points to.

        Raises:
            RegistryError: no such channel, or a damaged one.
        """
        target = channels.read(self.root, lineage, name).target
        if target is None and name != LATEST:
            raise RegistryError(
                f"{self.root}: {lineage} has no channel {name!r}; it has {self.channels(lineage)}. Make it: "
                f"registry.move('{lineage}', '{name}', expected=None, to='{lineage}@0007')."
            )
        if target is None:
            raise RegistryError(f"{self.root}: no snapshot of {lineage!r}. {self._available(lineage)}")
        try:
            return self.get(target)
        except RegistryError:
            if channels.read(self.root, lineage, name).target == target:
                raise
        return self.channel(lineage, name)  # moved between the two reads, and what it pointed to is pruned

    def current(self, lineage: str) -> Snapshot:
        """The snapshot that the channel ``latest`` points to: the newest, unless that was rolled back.

        Raises:
            RegistryError: the lineage has published nothing.
        """
        return self.channel(lineage, LATEST)

    def pinned(self, expert: str) -> Pin:
        """The pin of ``expert`` that holds.

        Raises:
            RegistryError: the expert was never pinned.
        """
        history = pins.read(self.root, expert)
        if not history:
            lineage = next(iter(self.lineages()), "FM")
            raise RegistryError(
                f"{self.root}: expert {expert!r} is not pinned; pinned are {pins.experts(self.root)}. "
                f"Pin it: hypercast expert pin {expert} --lineage {lineage}."
            )
        return history[-1]

    def verify(self) -> Sequence[Damage]:
        """Read everything and compare it with its digests; empty if all is well. Nothing is changed."""
        return damage.find(self.root, self._folders())

    def _folders(self) -> Sequence[str]:
        if not self.root.is_dir():
            return []
        names = sorted(path.name for path in self.root.iterdir() if path.is_dir() and pins.NAME.fullmatch(path.name))
        return [name for name in names if name not in RESERVED]

    def _available(self, lineage: str) -> str:
        names = ", ".join(f"{snapshot.name} (watermark {snapshot.watermark})" for snapshot in self.list(lineage))
        if names:
            return f"There are: {names}."
        return f"Lineages with snapshots: {self.lineages()}. Train one: hypercast run PLATFORM.yaml."
