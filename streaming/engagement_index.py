"""The engagement log of a data set as an index on disk: sorted by (user, time), mapped, shared by all its readers.

::

    CACHE/engagements/
      .lock                          readers hold it while they open, one writer while it builds
      WINDOWS/ITEMS/                 streaming/columns.py: users, first, items, item, surface, action, time
      WINDOWS/ITEMS-surface=S/       the same of one surface

WINDOWS is a digest of the engagement parts, chained window by window, and ITEMS one of the catalogue's ids: an index is
found by what is in it, never stale, and the same for every copy of a data set. When a data set has grown by windows,
its next index is merged from the one of the windows before, which then goes, and from the new parts.
"""

import fcntl
import functools
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

import numpy as np

from streaming.cache import cache_folder, locked, unwritable
from streaming.catalogue import Catalogue
from streaming.columns import MANIFEST, Columns
from streaming.dataset import Dataset, missing_file
from streaming.engagement_build import BLOCK, Block, build, part_blocks
from streaming.files import sha256_of, write_directory
from streaming.history import EngagementLog, Events

FORMAT = 1
PLACES = 4
"""Parts of the columns that a binary search looks into; its last steps all fall into one."""


@dataclass(frozen=True, kw_only=True)
class MappedLog(EngagementLog):
    """An engagement log whose columns are mapped from disk. Pickled, it is its folder's name.

    Attributes:
        pages: the mapped columns.
    """

    pages: Columns

    @staticmethod
    def open(folder: Path, *, verify: bool = True) -> "MappedLog":
        """Map the index in ``folder``; ``verify`` reads it once to compare checksums.

        Raises:
            DataError: it is damaged.
        """
        pages = Columns(folder, verify=verify)
        names = [field.name for field in fields(EngagementLog)]
        return MappedLog(pages=pages, **{name: pages.column[name] for name in names})

    def only(self, surface: int) -> "MappedLog":
        """The engagements of one surface: an index of its own beside this one, made at the first call."""
        folder = self.pages.folder
        return _open_or_build(
            folder.with_name(f"{folder.name}-surface={surface}"),
            lambda: _stored_blocks(self, surface=surface),
            self.pages.column["items"],
        )

    def spans(self, user_id: np.ndarray, time: np.ndarray, *, max_length: int) -> tuple[np.ndarray, np.ndarray]:
        found = super().spans(user_id, time, max_length=max_length)
        self.pages.looked_at(PLACES * len(user_id))
        return found

    def take(self, start: np.ndarray, end: np.ndarray) -> Events:
        return Events(*(self.pages.read(name, start, end) for name in Events._fields))

    def __reduce__(self) -> tuple[Callable[..., "MappedLog"], tuple[Path]]:
        return _reopen, (self.pages.folder,)


def _reopen(folder: Path) -> MappedLog:
    return MappedLog.open(folder, verify=False)  # whoever sent the name has verified it


def open_index(dataset: Dataset, items: Catalogue, *, cache: Path | None = None) -> MappedLog:
    """The mapped engagement log of ``dataset``; built at the first call, in any process, and after a change.

    Args:
        items: the data set's catalogue of items.
        cache: folder to keep indices in; None: ``engagements`` in :func:`cache_folder`.

    Raises:
        DataError: an engagement part is missing, an index was damaged on disk, or cannot be written.
    """
    root = cache or cache_folder() / "engagements"
    files = [dataset.engagement_file(window.index) for window in dataset.windows]
    digests = _chained(files)
    folder = root / digests[-1] / _digest(items.ids.tobytes())
    earlier = [root / digest for digest in digests[-2::-1]]

    @functools.cache
    def previous() -> tuple[MappedLog | None, int]:
        """The latest index of fewer windows, and of how many; asked for once nobody else can build or drop one."""
        found = ((_reusable(path), len(files) - missing) for missing, path in enumerate(earlier, start=1))
        return next((each for each in found if each[0] is not None), (None, 0))

    def blocks() -> Iterable[Block]:
        log, windows = previous()
        old = _stored_blocks(log, items=items) if log is not None else ()
        return chain(old, *(part_blocks(file, items) for file in files[windows:]))

    def drop_earlier() -> None:
        for path in earlier:
            shutil.rmtree(path, ignore_errors=True)  # whoever has mapped it keeps what is mapped

    return _open_or_build(folder, blocks, items.ids, built=drop_earlier)


def _open_or_build(
    folder: Path, blocks: Callable[[], Iterable[Block]], items: np.ndarray, *, built: Callable[[], None] = lambda: None
) -> MappedLog:
    root = folder.parent.parent
    with locked(root, fcntl.LOCK_SH):
        if (folder / MANIFEST).is_file():
            return MappedLog.open(folder)
    with locked(root, fcntl.LOCK_EX):
        if not (folder / MANIFEST).is_file():  # nobody was faster
            _write(folder, blocks, items)
            built()
        return MappedLog.open(folder, verify=False)


def _write(folder: Path, blocks: Callable[[], Iterable[Block]], items: np.ndarray) -> None:
    def fill(partial: Path) -> None:
        try:
            build(partial, blocks, items, {"format": FORMAT})
        except BaseException:
            shutil.rmtree(partial)
            raise

    try:
        write_directory(folder, fill)
    except OSError as error:
        raise unwritable(folder, error) from None


def _reusable(path: Path) -> MappedLog | None:
    """An index of some windows' engagements in which no item is unknown, and so can be numbered anew."""
    for manifest in path.glob(f"*/{MANIFEST}"):
        if "-surface=" not in manifest.parent.name:
            log = MappedLog.open(manifest.parent)
            if log.pages.facts["unlisted"] == 0:
                return log
    return None


def _stored_blocks(log: MappedLog, *, surface: int | None = None, items: Catalogue | None = None) -> Iterator[Block]:
    """The rows of an index, all or of one ``surface``, with items numbered as in ``items``."""
    for start in range(0, len(log.time), BLOCK):
        row = np.arange(start, min(start + BLOCK, len(log.time)))
        if surface is not None:
            row = row[log.surface[row] == surface]
        item = log.item[row]
        yield Block(
            user=log.users[np.searchsorted(log.first, row, side="right") - 1],
            item=item if items is None else items.rows(log.pages.column["items"][item]),
            surface=log.surface[row],
            action=log.action[row],
            time=log.time[row],
        )
        log.pages.looked_at(BLOCK)


def _chained(files: list[Path]) -> list[str]:
    """For every window a digest of its engagement part and of those before."""
    digests, last = [], f"engagement index {FORMAT}"
    for file in files:
        if not file.is_file():
            raise missing_file(file)
        last = _digest(f"{last} {sha256_of(file)}".encode())
        digests.append(last)
    return digests


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
