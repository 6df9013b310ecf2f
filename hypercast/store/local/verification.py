"""Reading everything there is, to name all that is damaged."""

from collections.abc import Iterator
from pathlib import Path

from hypercast.store.engine import Damage
from hypercast.store.local import manifest as manifests
from hypercast.store.local.manifest import SEGMENTS
from hypercast.store.local.reader import View, missing
from hypercast.store.local.run import DamagedError


def verify(root: Path) -> Iterator[Damage]:
    """All damage, with everything opened anew. A finding does not end the search, unless it is the manifest."""
    try:
        view = View(root)
    except DamagedError as error:
        yield error.damage
        return
    for name, snapshot in view.manifest.snapshots.items():
        for entry in snapshot.segments:
            try:
                yield from view.segment(name, snapshot.layout, entry).verify()
            except DamagedError as error:
                yield error.damage
            except FileNotFoundError:
                # Merged or dropped since: then nobody misses it.
                if view.identity == manifests.identity(str(root / manifests.NAME)):
                    yield missing(root / SEGMENTS / entry.file)
