"""What in a registry is not what was written: every byte of every file is read and compared with its digest."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from hypercast import pins, snapshot
from hypercast.errors import RegistryError
from hypercast.objects import channels
from hypercast.objects.contents import REMEDY, Contents
from hypercast.snapshot import MANIFEST_REMEDY, OBJECTS, Snapshot
from hypercast.store.engine import Damage
from streaming import files


def find(root: Path, lineages: Sequence[str]) -> list[Damage]:
    """All damage under ``root``: manifests, objects, channels and pins; empty if all is well.

    Takes no lock: what is published or pruned meanwhile is not mistaken for damage.
    """
    whole: dict[str, Snapshot] = {}
    found = [each for lineage in lineages for each in _of_manifests(root / lineage, whole)]
    found += _of_objects(Contents(root / OBJECTS), whole)
    for lineage in lineages:
        for name in channels.names(root, lineage):
            found += _of_channel(root, lineage, name)
    for expert in pins.experts(root):
        found += _of_pin(root, expert)
    return found


def _of_manifests(lineage: Path, whole: dict[str, Snapshot]) -> Iterator[Damage]:
    """Fills ``whole`` with the snapshots that can be opened."""
    for path in snapshot.versions(lineage):
        try:
            opened = Snapshot.open(path)
        except RegistryError as error:
            yield Damage(where=str(path / "manifest.json"), what=str(error), remedy=MANIFEST_REMEDY)
            continue
        if opened is not None:
            whole[opened.name] = opened
        elif path.exists():
            what = f"missing: {pins.snapshot_name(lineage.name, int(path.name))} cannot be seen without it"
            yield Damage(where=str(path / "READY"), what=what, remedy=MANIFEST_REMEDY)


def _of_objects(contents: Contents, whole: dict[str, Snapshot]) -> Iterator[Damage]:
    users = defaultdict(list)
    for name, one in whole.items():
        for digest in one.weights.objects:
            users[digest].append(name)
    damaged = {}
    for digest in sorted(users.keys() | set(contents.digests())):
        try:
            if files.sha256_of(contents.path(digest)) != digest:
                damaged[digest] = "its SHA-256 differs"
        except FileNotFoundError:
            damaged[digest] = "missing"
    hurt = {name for digest in damaged for name in users[digest]}
    unhurt = ", ".join(name for name in whole if name not in hurt) or "none"
    for digest, what in damaged.items():
        names = [name for name in users[digest] if (whole[name].path / "READY").exists()]
        if names or contents.path(digest).exists():
            yield Damage(
                where=str(contents.path(digest)),
                what=f"{what}; it hurts {', '.join(names) or 'no snapshot'}",
                remedy=f"{REMEDY} Without damage: {unhurt}." if names else "Prune: it is not needed.",
            )


def _of_channel(root: Path, lineage: str, name: str) -> Iterator[Damage]:
    where = str(root / lineage / "channels" / f"{name}.json")
    try:
        target = channels.read(root, lineage, name).target
    except RegistryError as error:
        yield Damage(where=where, what=str(error), remedy=channels.REMEDY)
        return
    if target is not None and not _is_there(root, target) and channels.read(root, lineage, name).target == target:
        yield Damage(where=where, what=f"points to {target}, which cannot be opened", remedy="Move the channel.")


def _of_pin(root: Path, expert: str) -> Iterator[Damage]:
    where = str(root / "pins" / f"{expert}.json")
    try:
        history = pins.read(root, expert)
    except RegistryError as error:
        yield Damage(where=where, what=str(error), remedy="Delete it and pin the expert again.")
        return
    fixed = history and history[-1].version is not None
    if fixed and not _is_there(root, history[-1].target) and pins.read(root, expert) == history:
        what = f"pins {expert} to {history[-1].target}, which cannot be opened"
        yield Damage(where=where, what=what, remedy="Restore the snapshot from a copy, or pin the expert again.")


def _is_there(root: Path, name: str) -> bool:
    lineage, version = pins.parse_snapshot_name(name)
    try:
        return Snapshot.open(root / lineage / f"{version:04d}") is not None
    except RegistryError:
        return False
