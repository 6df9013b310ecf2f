"""Builds an engagement index: one stable counting sort by user, in memory that does not grow with the log.

Blocks that come in the order of time and are each sorted by (user, time), as a data set's engagement parts do and are,
take no comparison: the first pass counts each user's engagements, the second puts every block's runs where their users'
rows end so far. Other blocks, and users of whom something earlier comes later, are sorted besides.

Shape legend: N engagements of a block, R runs (users of a block), U users.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streaming.catalogue import Catalogue
from streaming.columns import ColumnWriter
from streaming.dataset import unreadable

BLOCK = 1 << 20
"""Engagements held in memory at once."""


class Block(NamedTuple):
    """Engagements, ``[N]``; ``item`` is a row of the catalogue."""

    user: np.ndarray
    item: np.ndarray
    surface: np.ndarray
    action: np.ndarray
    time: np.ndarray


def part_blocks(file: Path, items: Catalogue) -> Iterator[Block]:
    """An engagement part of a data set, piece by piece."""
    for batch in _batches(file):
        yield Block(
            user=batch["user_id"].to_numpy(),
            item=items.rows(batch["item_id"].to_numpy()),
            surface=batch["surface"].to_numpy(),
            action=batch["action"].to_numpy(),
            time=batch["time"].cast(pa.int64()).to_numpy(),
        )


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    """Raises:
    DataError: the file is damaged.
    """
    try:
        with pq.ParquetFile(file) as part:
            yield from part.iter_batches(BLOCK, columns=["user_id", "time", "item_id", "surface", "action"])
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        raise unreadable(file, error) from None


def build(folder: Path, blocks: Callable[[], Iterable[Block]], items: np.ndarray, facts: dict[str, Any]) -> None:
    """Write the index of all ``blocks`` into the empty ``folder``.

    Args:
        blocks: gives the same blocks each time it is called.
        items: sorted ids of the catalogue that ``Block.item`` numbers.
        facts: go into the manifest.
    """
    users, count = _count(block.user for block in blocks())
    first = np.concatenate([[0], np.cumsum(count)])
    rows = int(first[-1])
    kinds = {"item": "<i4", "surface": "|i1", "action": "|i1", "time": "<i8"}
    plain = {"users": ("<i8", len(users)), "first": ("<i8", len(first)), "items": ("<i8", len(items))}
    writer = ColumnWriter(folder, {**plain, **{name: (kind, rows) for name, kind in kinds.items()}})
    for name, values in (("users", users), ("first", first), ("items", items)):
        writer.column[name][:] = values
    end, latest = first[:-1].copy(), np.full(len(users), np.iinfo(np.int64).min)
    disordered = np.zeros(len(users), dtype=bool)
    unlisted = 0
    for block in map(_sorted, blocks()):
        run, length = _runs(block.user)
        rank = np.searchsorted(users, block.user[run])
        place = np.arange(len(block.user)) + np.repeat(end[rank] - run, length)
        for name in kinds:
            writer.column[name][place] = getattr(block, name)
        end[rank] += length
        disordered[rank] |= block.time[run] < latest[rank]
        latest[rank] = np.maximum(latest[rank], block.time[run + length - 1])
        unlisted += int((block.item == len(items)).sum())
        writer.let_go()
    for start, stop in zip(first[:-1][disordered].tolist(), first[1:][disordered].tolist(), strict=True):
        order = start + np.argsort(writer.column["time"][start:stop], kind="stable")
        for name in kinds:
            writer.column[name][start:stop] = writer.column[name][order]
    writer.close({**facts, "engagements": rows, "unlisted": unlisted})


def _sorted(block: Block) -> Block:
    user, time = block.user, block.time
    if ((np.diff(user) > 0) | ((np.diff(user) == 0) & (np.diff(time) >= 0))).all():
        return block
    order = np.lexsort((time, user))
    return Block(*(column[order] for column in block))


def _count(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct users and how often each occurs in all ``parts``."""
    users, count = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for user in parts:
        run, length = _runs(user)
        users, place = np.unique(np.concatenate([users, user[run]]), return_inverse=True)
        # Sums of whole numbers far below 2**53: exact.
        count = np.bincount(place, weights=np.concatenate([count, length]), minlength=len(users)).astype(np.int64)
    return users, count


def _runs(user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the runs of equal users begin and how long they are, int64 ``[R]``."""
    run = np.flatnonzero(np.concatenate([[True], user[1:] != user[:-1]])[: len(user)])
    return run, np.diff(np.append(run, len(user)))
