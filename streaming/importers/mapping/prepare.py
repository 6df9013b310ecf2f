"""One pass over the source: everything checked, ids registered, rows spilled by window.

Memory holds one block of rows, 16 bytes an id, and the attributes of items and users; the rest is in a scratch folder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np

from streaming.errors import DataError
from streaming.importers.mapping.columns import Int
from streaming.importers.mapping.config import MappingConfig, WindowConfig
from streaming.importers.mapping.entities import Attributes, read_entities
from streaming.importers.mapping.quarantine import Quarantine
from streaming.importers.mapping.registry import IdRegistry
from streaming.importers.mapping.rows import Rows
from streaming.importers.mapping.source import Reader
from streaming.importers.mapping.spill import Partitions, partition
from streaming.importers.mapping.surfaces import Surfaces
from streaming.importers.mapping.tally import Tally
from streaming.schema import microseconds

DAY, HOUR = 86_400_000_000, 3_600_000_000  # microseconds
MOST_WINDOWS = 10_000

Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The source, checked and on disk.

    Attributes:
        boundaries: of the windows, microseconds UTC, int64 [windows + 1].
        rows, engaged: by window; see :mod:`streaming.importers.mapping.rows`.
        items, users: all ids, with the files that translate them.
    """

    boundaries: Int
    rows: Partitions
    engaged: Partitions
    items: IdRegistry
    users: IdRegistry
    item_attributes: Attributes
    user_attributes: Attributes
    surfaces: Surfaces
    tally: Tally
    quarantine: Quarantine


def prepare(
    config: MappingConfig, *, folder: Path, scratch: Path, quarantine: Quarantine, read: Reader, report: Progress
) -> Prepared:
    """Read every file of a mapping.

    Args:
        folder: that files are relative to.
        scratch: an empty folder.

    Raises:
        DataError: a file is missing or damaged, a column cannot be what it is mapped to, too many rows are bad, or
            none is good.
    """
    items, users = IdRegistry(file=scratch / "ids_item.parquet"), IdRegistry(file=scratch / "ids_user.parquet")
    report("reading items and users", 0.0)
    of_items = read_entities(config.items, folder=folder, read=read, registry=items, quarantine=quarantine)
    of_users = read_entities(config.users, folder=folder, read=read, registry=users, quarantine=quarantine)
    rows = Rows(config=config, folder=scratch, items=items, users=users, by_item=of_items, quarantine=quarantine)
    for block in read(config.rows, folder, rows.columns):
        rows.add(block)
        report(f"reading rows: {rows.spill.rows:,}", 0.1)
    for number, action in enumerate(config.actions):
        if action.files is not None:
            for block in read(action.files, folder, rows.engaged_columns(action)):
                rows.add_engaged(block, number)
                report(f"reading engagements: {rows.engaged.rows:,}", 0.3)
    rows.close()
    items.close()
    users.close()
    quarantine.require_few()
    if rows.spill.rows == 0:
        reasons = quarantine.reasons.most_common(3)
        why = "".join(f" {count} times: {reason}, first in {quarantine.first[reason]}." for reason, count in reasons)
        raise DataError(f"{config.rows.files[0]}: there is not one good row.{why} Correct 'files', or the mapping.")
    boundaries = window_boundaries(config.windows, rows.tally.first, rows.tally.last)
    report("sorting rows by window", 0.4)
    return Prepared(
        boundaries=boundaries,
        rows=partition(rows.spill, folder=scratch / "rows", boundaries=boundaries),
        engaged=partition(rows.engaged, folder=scratch / "engaged", boundaries=boundaries),
        items=items,
        users=users,
        item_attributes=of_items if config.items.files else rows.item_attributes,
        user_attributes=of_users if config.users.files else rows.user_attributes,
        surfaces=rows.surfaces,
        tally=rows.tally,
        quarantine=quarantine,
    )


def window_boundaries(config: WindowConfig, first: int, last: int) -> Int:
    """Boundaries of windows that hold all times from ``first`` to ``last``, microseconds UTC.

    Raises:
        DataError: an event lies before the first window, or there are too many windows.
    """
    length = None if config.span is None else config.span // timedelta(microseconds=1)
    grain = HOUR if length is not None and length < DAY else DAY
    start = first // grain * grain if config.start is None else microseconds(config.start)
    if first < start:
        at = np.datetime64(first, "us")
        raise DataError(
            f"windows.start is {config.start}, but the earliest event is at {at}. Start earlier, or leave it out."
        )
    if length is None:
        count = config.count or 1
        length = -((start - last - 1) // count)  # rounded up, so that the last window holds the last event
    else:
        count = (last - start) // length + 1
    if count > MOST_WINDOWS:
        raise DataError(f"windows of {config.length} from first to last event would be {count}. Give longer ones.")
    return start + length * np.arange(count + 1)
