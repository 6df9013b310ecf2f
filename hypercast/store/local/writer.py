"""Everything that replaces the manifest: one process at a time, and whole or not at all."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hypercast import lock
from hypercast.errors import StoreError
from hypercast.store import engine
from hypercast.store.engine import ConflictError, Layout
from hypercast.store.local import manifest as manifests
from hypercast.store.local import merge, segment, steps
from hypercast.store.local.delta import pieces
from hypercast.store.local.manifest import SEGMENTS, Manifest, SnapshotEntry
from hypercast.store.local.reader import Reader, View
from hypercast.store.local.run import Run
from hypercast.store.local.segment import Chunks, Draft, Entry
from hypercast.store.local.steps import Step
from streaming import files


class Writer:
    """Writes to the store in ``root``, which ``reader`` follows.

    All methods raise StoreError, naming the file, if it cannot be written; what was committed before stays as it was.
    """

    def __init__(self, root: Path, reader: Reader, *, max_segments: int) -> None:
        self._root, self._folder, self._where = root, root / SEGMENTS, str(root)
        self._reader, self._max_segments = reader, max_segments
        self._started = False

    def draft(self, snapshot: str, layout: Layout, chunks: Chunks) -> Draft | None:
        """A segment for :meth:`append`, of rows that need not be held in memory until then; needs no lock.

        None where the file system has no files without names: then memory must do.
        """
        with self._told():
            self._folder.mkdir(parents=True, exist_ok=True)
            file = segment.unnamed(self._folder)
            if file is None:
                return None
            return Draft.write(file, self._folder, chunks, snapshot=snapshot, layout=layout)

    def append(self, snapshot: str, layout: Layout, runs: Sequence[Run]) -> None:
        """One more segment of a snapshot.

        Raises:
            ConflictError: somebody else has committed another layout.
        """
        with self._writing() as view:
            before = view.manifest.snapshots.get(snapshot)
            if before is not None and before.layout != layout:
                raise ConflictError(
                    f"{self._where}: rows of {snapshot} that somebody else has committed meanwhile are "
                    f"{before.layout}, those put here are {layout}. Publish under another snapshot."
                )
            kept = before.segments if before else ()
            self._add(view.manifest, snapshot, layout, kept, pieces(runs))

    def tidy(self, snapshot: str) -> None:
        """Merge the latest segments if there are too many."""
        with self._writing() as view:
            entry = view.manifest.snapshots.get(snapshot)
            if entry is not None and len(entry.segments) > self._max_segments:
                self._merge(view, snapshot, merge.count_to_merge([one.rows for one in entry.segments]))

    def compact(self, snapshot: str) -> None:
        """Leave one segment."""
        with self._writing() as view:
            entry = view.manifest.snapshots.get(snapshot)
            if entry is not None and len(entry.segments) > 1:
                self._merge(view, snapshot, len(entry.segments))

    def drop(self, snapshot: str) -> None:
        """Name a snapshot no more."""
        with self._writing() as view:
            if snapshot in view.manifest.pointers.values():
                raise StoreError(engine.cannot_drop(self._where, snapshot, view.manifest.pointers))
            if snapshot in view.manifest.snapshots:
                manifests.save(self._root, view.manifest.with_snapshot(snapshot, None))

    def move(self, pointer: str, *, expected: str | None, to: str | None) -> None:
        """Compare and swap, as in ``Engine.move``."""
        with self._writing() as view:
            if to is not None and to not in view.manifest.snapshots:
                raise StoreError(engine.no_such_rows(self._where, pointer, to))
            actual = view.manifest.pointers.get(pointer)
            if actual != expected:
                raise ConflictError(engine.moved_meanwhile(self._where, pointer, expected=expected, actual=actual))
            if actual != to:
                manifests.save(self._root, view.manifest.with_pointer(pointer, to))

    def collect(self) -> int:
        """Remove what nothing names and merge what can be merged; bytes freed."""
        with self._writing() as view:
            before = self._size()
            self._sweep(view.manifest)
            names = [name for name, entry in view.manifest.snapshots.items() if len(entry.segments) > 1]
        for name in names:
            self.compact(name)
        return max(0, before - self._size())

    def _merge(self, view: View, snapshot: str, count: int) -> None:
        """Make the ``count`` latest segments one."""
        entry = view.manifest.snapshots[snapshot]
        runs = [view.segment(snapshot, entry.layout, one) for one in entry.segments[-count:]]
        self._add(view.manifest, snapshot, entry.layout, entry.segments[:-count], [runs])
        self._sweep(self._reader.manifest())

    def _add(
        self,
        manifest: Manifest,
        snapshot: str,
        layout: Layout,
        kept: tuple[Entry, ...],
        pieces: Sequence[Sequence[Run]],
    ) -> None:
        """Let the segments of a snapshot be those ``kept``, and one of each piece."""
        # With older rows elsewhere, those would come to light where later ones are left out.
        prune = not kept and len(pieces) == 1
        segments = list(kept)
        for number, runs in enumerate(pieces):
            path = self._folder / manifest.next_file(snapshot, number)
            # What an attempt that failed has left there may be the very file that is to be kept.
            path.unlink(missing_ok=True)
            segments.append(_write(path, runs, prune=prune, snapshot=snapshot, layout=layout))
        files.fsync_directory(self._folder)
        new = SnapshotEntry(layout=layout, segments=tuple(segments))
        manifests.save(self._root, manifest.with_snapshot(snapshot, new))

    @contextmanager
    def _writing(self) -> Iterator[View]:
        """What there is; nobody else replaces it meanwhile."""
        with self._told(), lock.exclusive(self._root):
            steps.reached(Step.LOCKED)
            if not self._started:
                self._start()
            yield self._reader.view()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{error.filename or self._where}: cannot be written ({error.strerror}). What was committed before is "
                "still served. Make room, or the folder writable, and do the same again."
            ) from error

    def _start(self) -> None:
        """What the first to write does: a manifest before any segment, and an end to what the killed left behind."""
        manifest = self._reader.manifest()
        self._folder.mkdir(exist_ok=True)
        if not (self._root / manifests.NAME).exists():
            manifests.save(self._root, manifest)
        self._sweep(manifest)
        self._started = True

    def _sweep(self, manifest: Manifest) -> None:
        """Remove files that the manifest does not name; those who read one keep it until they let go of it."""
        named = manifest.files()
        for path in sorted(self._folder.iterdir()):
            if path.name not in named:
                path.unlink()
                steps.reached(Step.FILE_REMOVED)

    def _size(self) -> int:
        return sum(path.stat().st_size for path in self._folder.iterdir())


def _write(path: Path, runs: Sequence[Run], *, prune: bool, snapshot: str, layout: Layout) -> Entry:
    """One segment of the runs, and nothing if it cannot be written."""
    if isinstance(runs[0], Draft):
        try:
            return runs[0].keep(path)
        except FileNotFoundError:
            pass  # Kept by an attempt that failed later on, and removed since: write it once more.
    try:
        return segment.write(path, merge.chunks(runs, prune=prune), snapshot=snapshot, layout=layout)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
