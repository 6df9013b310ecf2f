"""The segments of the manifest that holds now, opened when they are first read."""

import threading
from pathlib import Path
from typing import NamedTuple

from hypercast.errors import StoreError
from hypercast.store.engine import Damage, Layout
from hypercast.store.local import manifest as manifests
from hypercast.store.local.manifest import SEGMENTS, Manifest, Opened
from hypercast.store.local.run import DamagedError
from hypercast.store.local.segment import Entry, Segment


class Snapshot(NamedTuple):
    """layout: of its rows; segments: oldest first."""

    layout: Layout
    segments: tuple[Segment, ...]


class View:
    """One manifest, and what was opened of it; stays readable after it was replaced, for those who have it."""

    def __init__(self, root: Path, before: "View | None" = None) -> None:
        self._folder = root / SEGMENTS
        self._opened = Opened(root)
        self.manifest, self.identity = self._opened.manifest, self._opened.identity
        self.snapshots: dict[str, Snapshot | None] = {}
        # Segments never change: those that this manifest names too need not be opened again.
        entries = {entry for one in self.manifest.snapshots.values() for entry in one.segments}
        opened = {} if before is None else before._segments.copy()
        self._segments: dict[Entry, Segment] = {entry: opened[entry] for entry in entries & opened.keys()}

    def open(self, name: str) -> Snapshot | None:
        """Segments of a snapshot.

        Raises:
            FileNotFoundError: one has gone: the manifest was replaced, or it was removed by hand.
            DamagedError: one is not what was written.
        """
        entry = self.manifest.snapshots.get(name)
        if entry is None:
            return None
        segments = tuple(self.segment(name, entry.layout, one) for one in entry.segments)
        self.snapshots[name] = Snapshot(entry.layout, segments)
        return self.snapshots[name]

    def segment(self, name: str, layout: Layout, entry: Entry) -> Segment:
        """One of them; errors as above."""
        if entry not in self._segments:
            self._segments[entry] = Segment.open(self._folder, entry, snapshot=name, layout=layout)
        return self._segments[entry]


class Reader:
    """Follows the manifest of ``root``; any number of threads may use it.

    One status call a read tells whether the manifest was replaced.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._path = root, str(root / manifests.NAME)
        self._lock = threading.Lock()
        self._view: View | None = None

    def manifest(self) -> Manifest:
        """The one that holds now."""
        return self.view().manifest

    def snapshot(self, name: str) -> Snapshot | None:
        """By the manifest that holds now; None if it has no rows.

        Raises:
            DamagedError: a file that is not what was written, or is missing.
        """
        view = self.view()
        try:
            return view.snapshots[name]
        except KeyError:
            pass
        while True:
            try:
                return view.open(name)
            except FileNotFoundError as error:
                again = self.view()
                if again is view:
                    raise DamagedError(missing(Path(error.filename))) from None
                view = again
            except OSError as error:
                raise cannot_be_read(error) from error

    def view(self) -> View:
        """The manifest that holds now."""
        view = self._view
        try:
            if view is not None and view.identity == manifests.identity(self._path):
                return view
            with self._lock:
                self._view = view = View(self._root, self._view)
                return view
        except OSError as error:
            raise cannot_be_read(error) from error

    def forget(self) -> None:
        """Let go of all files."""
        with self._lock:
            self._view = None


def cannot_be_read(error: OSError) -> StoreError:
    """A file that is there and does not open."""
    remedy = "Give the folder of a store, and let this user read it."
    return StoreError(f"{error.filename}: cannot be read ({error.strerror}). {remedy}")


def missing(path: Path) -> Damage:
    """A segment that the manifest names."""
    return Damage(where=str(path), what="it is missing", remedy="Drop its snapshot and publish it again.")
