"""Attributes of items and users: from files of their own, or the earliest that the rows say of an id."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streaming.importers.mapping.columns import ids, trimmed
from streaming.importers.mapping.config import EntityConfig
from streaming.importers.mapping.quarantine import Checks, Quarantine
from streaming.importers.mapping.registry import IdRegistry
from streaming.importers.mapping.roles import AttributeConfig
from streaming.importers.mapping.source import Reader

Int = npt.NDArray[np.int64]
PENDING = 1 << 18  # rows that wait at least before the earliest of each id is found among them


class Attributes:
    """For each id the attributes of its earliest row. Only one row an id stays in memory."""

    def __init__(self, *, names: list[str]) -> None:
        self.names = names
        self._schema = pa.schema(
            [
                pa.field("code", pa.int64()),
                pa.field("rank", pa.int64()),
                *(pa.field(name, pa.string()) for name in names),
            ]
        )
        self._kept = self._schema.empty_table()
        self._pending: list[pa.Table] = []
        self._waiting = 0

    def add(self, *, code: Int, rank: Int, values: list[pa.Array]) -> None:
        """Rows with their ids [n], what orders them [n], and their attributes; of equal ranks the one added first."""
        if not self.names:
            return
        table = pa.table([pa.array(code), pa.array(rank), *values], schema=self._schema)
        self._pending.append(_earliest(table))
        self._waiting += len(self._pending[-1])
        if self._waiting > max(PENDING, len(self._kept)):
            self._settle()

    def of(self, codes: Int) -> dict[str, pa.ChunkedArray]:
        """Attributes of ids by name, null where nothing is known of an id."""
        self._settle()
        known = self._kept["code"].to_numpy()
        at = np.searchsorted(known, codes).clip(max=max(len(known) - 1, 0))
        found = known[at] == codes if len(known) else np.zeros(len(codes), dtype=bool)
        index = pa.array(at, mask=~found)
        return {name: self._kept[name].take(index) for name in self.names}

    def _settle(self) -> None:
        if self._pending:
            self._kept = _earliest(pa.concat_tables([self._kept, *self._pending])).combine_chunks()
            self._pending, self._waiting = [], 0


def attribute(array: pa.Array, config: AttributeConfig) -> pa.Array:
    """A column as a categorical attribute: text, null where empty."""
    text = trimmed(array.cast(pa.string()))
    if config.first_of is not None:
        parts = pc.split_pattern(text, config.first_of, max_splits=1)
        text = trimmed(pc.list_element(parts, 0))
    return text


def columns_of(config: EntityConfig) -> list[str]:
    """Columns that the attributes are made of."""
    return list(dict.fromkeys(each.column for each in config.attributes.values()))


def read_entities(
    config: EntityConfig, *, folder: Path, read: Reader, registry: IdRegistry, quarantine: Quarantine
) -> Attributes:
    """Attributes from the files of ``config``; every id there is registered, also one that no row has."""
    attributes = Attributes(names=list(config.attributes))
    if config.files is None or config.id is None:
        return attributes
    number = 0
    for block in read(config.files, folder, list(dict.fromkeys([config.id, *columns_of(config)]))):
        found = ids(block.columns[config.id], column=config.id)
        checks = Checks(len(block.row))
        checks.refuse(found.missing, f"{config.id}: no id")
        checks.refuse(found.long, f"{config.id}: an id that is too long")
        good = quarantine.take(block, checks)
        keep = pa.array(good)
        found = found.filter(good)
        registry.add(found)
        attributes.add(
            code=found.code,
            rank=number + np.arange(len(found.code)),
            values=[attribute(block.columns[each.column], each).filter(keep) for each in config.attributes.values()],
        )
        number += len(good)
    return attributes


def _earliest(table: pa.Table) -> pa.Table:
    """One row a code, the one with the lowest rank, sorted by code."""
    code, rank = table["code"].to_numpy(), table["rank"].to_numpy()
    order = np.lexsort((rank, code))
    first = np.ones(len(order), dtype=bool)
    first[1:] = np.diff(code[order]) != 0
    return table.take(pa.array(order[first]))
