"""Blocks of the source become rows of fixed types: checked, with ids as codes, surfaces as numbers, labels with times.

Rows keep, beside the columns below, ``label_k`` and ``known_k`` for each task, ``dense_k`` and ``context_k``.

Legend: n rows.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streaming.importers.mapping.columns import Float, Ids, Int, Mask, ids, numbers, times
from streaming.importers.mapping.config import EngagementConfig, EntityConfig, MappingConfig
from streaming.importers.mapping.entities import Attributes, attribute, columns_of
from streaming.importers.mapping.labels import labels
from streaming.importers.mapping.quarantine import Checks, Quarantine
from streaming.importers.mapping.registry import IdRegistry
from streaming.importers.mapping.roles import DenseConfig, TimeConfig
from streaming.importers.mapping.source import Block
from streaming.importers.mapping.spill import Spill
from streaming.importers.mapping.surfaces import Surfaces
from streaming.importers.mapping.tally import Tally
from streaming.schema import microseconds

ENGAGED = pa.schema(
    [
        pa.field("user", pa.int64()),
        pa.field("item", pa.int64()),
        pa.field("time", pa.int64()),
        pa.field("surface", pa.int8()),
        pa.field("action", pa.int8()),
        pa.field("quantity", pa.float32()),
    ]
)


def row_schema(config: MappingConfig) -> pa.Schema:
    """Columns of a row."""
    fields = [pa.field(name, pa.int64()) for name in ("user", "item", "time", "request")]
    fields += [pa.field("surface", pa.int8()), pa.field("weight", pa.float32())]
    for number in range(len(config.tasks)):
        fields += [pa.field(f"label_{number}", pa.float32()), pa.field(f"known_{number}", pa.int64())]
    fields += [pa.field(f"dense_{number}", pa.float32()) for number in range(len(config.dense))]
    fields += [pa.field(f"context_{number}", pa.string()) for number in range(len(config.context))]
    return pa.schema(fields)


class Rows:
    """Takes in blocks of rows and of engagements; what is good goes to the spills, and the rest is set aside.

    Args:
        by_item: attributes of items from files of their own, where the surface is one of them.
    """

    def __init__(
        self,
        *,
        config: MappingConfig,
        folder: Path,
        items: IdRegistry,
        users: IdRegistry,
        by_item: Attributes,
        quarantine: Quarantine,
    ) -> None:
        self.surfaces = Surfaces(config=config.surface)
        self.tally = Tally(tasks=[task.name for task in config.tasks])
        self.spill = Spill(file=folder / "rows.arrows", schema=row_schema(config))
        self.engaged = Spill(file=folder / "engaged.arrows", schema=ENGAGED)
        self.item_attributes = Attributes(names=[] if config.items.files else list(config.items.attributes))
        self.user_attributes = Attributes(names=[] if config.users.files else list(config.users.attributes))
        self._config = config
        self._items, self._users = items, users
        self._by_item = by_item
        self._quarantine = quarantine
        self._span = (microseconds(config.earliest), microseconds(config.latest))

    @property
    def columns(self) -> list[str]:
        """Columns of the rows that the mapping names, each once."""
        config = self._config
        names = [config.user, config.item, config.time.column, config.surface.column, config.requests.id, config.weight]
        for task in config.tasks:
            names += [task.column, task.known_at.column if task.known_at else None]
        names += [each.column for each in (*config.dense.values(), *config.context.values())]
        names += [each.quantity for each in config.actions if each.files is None]
        names += [name for entity in (config.items, config.users) if not entity.files for name in columns_of(entity)]
        return list(dict.fromkeys(name for name in names if name is not None))

    @staticmethod
    def engaged_columns(action: EngagementConfig) -> list[str]:
        """Columns of an action's own files that the mapping names, each once."""
        time = action.time.column if action.time else None
        names = [action.user, action.item, time, action.surface, action.quantity]
        return list(dict.fromkeys(name for name in names if name is not None))

    def add(self, block: Block) -> None:
        """Take in a block of rows."""
        config, columns, checks = self._config, block.columns, Checks(len(block.row))
        user, item = self._ids(columns, config.user, checks), self._ids(columns, config.item, checks)
        time = self._times(columns, config.time, checks)
        surface = self._surface(columns, item, checks)
        request = np.zeros(len(time), dtype=np.int64)
        if config.requests.id is not None:
            request = self._ids(columns, config.requests.id, checks).code
        arrays: dict[str, np.ndarray] = {
            "user": user.code,
            "item": item.code,
            "time": time,
            "request": request,
            "surface": surface,
        }
        arrays["weight"] = self._amount(columns, config.weight, checks)
        for number, (value, known) in enumerate(labels(config.tasks, columns, time, checks, latest=self._span[1])):
            arrays |= {f"label_{number}": value, f"known_{number}": known}
        arrays |= {f"dense_{n}": _dense(each, columns, checks) for n, each in enumerate(config.dense.values())}
        quantities = [self._amount(columns, None if each.files else each.quantity, checks) for each in config.actions]

        self.tally.nulls(columns)
        good = self._quarantine.take(block, checks)
        self._items.add(item.filter(good))
        self._users.add(user.filter(good))
        self._describe(self.item_attributes, config.items, item.code, time, columns, good)
        self._describe(self.user_attributes, config.users, user.code, time, columns, good)
        arrays = {name: value[good] for name, value in arrays.items()}
        for number, (each, quantity) in enumerate(zip(config.actions, quantities, strict=True)):
            if each.files is None:
                self._engage(each, number, arrays, quantity[good])
        self.tally.rows(arrays)
        context = {
            f"context_{number}": attribute(columns[each.column], each).filter(pa.array(good))
            for number, each in enumerate(config.context.values())
        }
        self.spill.add(_batch(self.spill.schema, arrays | context))

    def add_engaged(self, block: Block, number: int) -> None:
        """Take in a block of engagements from files of their own; ``number`` is that of their action."""
        action, columns, checks = self._config.actions[number], block.columns, Checks(len(block.row))
        if action.user is None or action.item is None or action.time is None:
            raise ValueError(f"action {action.action} has no files")
        user, item = self._ids(columns, action.user, checks), self._ids(columns, action.item, checks)
        time = self._times(columns, action.time, checks)
        surface = np.full(len(time), -1, dtype=np.int8)
        if action.surface is not None:
            surface, missing = self.surfaces.of(columns[action.surface])
            checks.refuse(
                missing & ~np.asarray(columns[action.surface].is_null(), bool), f"{action.surface}: no surface"
            )
        quantity = self._amount(columns, action.quantity, checks)
        self.tally.nulls(columns, prefix=f"{action.action}.")
        good = self._quarantine.take(block, checks)
        self._items.add(item.filter(good))
        self._users.add(user.filter(good))
        values: dict[str, np.ndarray] = {"user": user.code, "item": item.code, "time": time}
        values |= {"surface": surface, "quantity": quantity}
        arrays = {name: value[good] for name, value in values.items()}
        arrays["action"] = np.full(len(arrays["time"]), number)
        self.tally.engaged(arrays["time"])
        self.engaged.add(_batch(ENGAGED, arrays))

    def close(self) -> None:
        """End the spills."""
        self.spill.close()
        self.engaged.close()

    def _ids(self, columns: dict[str, pa.Array], column: str, checks: Checks) -> Ids:
        found = ids(columns[column], column=column)
        checks.refuse(found.missing, f"{column}: no id")
        checks.refuse(found.long, f"{column}: an id that is too long")
        return found

    def _times(self, columns: dict[str, pa.Array], config: TimeConfig, checks: Checks) -> Int:
        time, missing, bad = times(columns[config.column], config)
        checks.refuse(missing, f"{config.column}: no time")
        checks.refuse(bad, f"{config.column}: not a time ({config.unit})")
        checks.refuse(
            time < self._span[0], f"{config.column}: before {self._config.earliest.date()}, read as {config.unit}"
        )
        checks.refuse(
            time >= self._span[1], f"{config.column}: after {self._config.latest.date()}, read as {config.unit}"
        )
        return time

    def _surface(self, columns: dict[str, pa.Array], item: Ids, checks: Checks) -> npt.NDArray[np.int8]:
        config = self._config.surface
        if config.constant is not None:
            return self.surfaces.constant(config.constant, len(item.code))
        if config.column is not None:
            surface, missing = self.surfaces.of(columns[config.column])
        else:
            values = self._by_item.of(item.code)[str(config.item_attribute)]
            surface, missing = self.surfaces.of(values.combine_chunks())
        checks.refuse(missing, f"{config.column or config.item_attribute}: no surface")
        return surface

    @staticmethod
    def _amount(columns: dict[str, pa.Array], column: str | None, checks: Checks) -> Float:
        """A column of numbers, 0 or more; 1 without a column or where it is null."""
        if column is None:
            return np.ones(len(next(iter(columns.values()))))
        value, bad = numbers(columns[column], column=column)
        checks.refuse(bad | (value < 0) | (value > 1e30), f"{column}: not a number from 0 on")
        return np.nan_to_num(value, nan=1.0, posinf=1.0, neginf=1.0)

    @staticmethod
    def _describe(
        kept: Attributes, config: EntityConfig, code: Int, time: Int, columns: dict[str, pa.Array], good: Mask
    ) -> None:
        if kept.names:
            keep = pa.array(good)
            values = [attribute(columns[each.column], each).filter(keep) for each in config.attributes.values()]
            kept.add(code=code[good], rank=time[good], values=values)

    def _engage(self, config: EngagementConfig, number: int, rows: dict[str, np.ndarray], quantity: Float) -> None:
        mask, time = np.ones(len(quantity), dtype=bool), rows["time"]
        if config.task is not None:
            task = [each.name for each in self._config.tasks].index(config.task)
            # What a row led to is history only from the moment on at which it was known.
            mask, time = rows[f"label_{task}"] == config.label, rows[f"known_{task}"]
        arrays = {name: rows[name][mask] for name in ("user", "item", "surface")} | {"time": time[mask]}
        arrays |= {"quantity": quantity[mask], "action": np.full(int(mask.sum()), number)}
        self.tally.engaged(arrays["time"])
        self.engaged.add(_batch(ENGAGED, arrays))


def _dense(config: DenseConfig, columns: dict[str, pa.Array], checks: Checks) -> Float:
    """Numbers [n], 0 where null."""
    value, bad = numbers(columns[config.column], column=config.column)
    value = np.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)
    if config.transform == "log1p":
        value = np.sign(value) * np.log1p(np.abs(value))
    checks.refuse(bad | (np.abs(value) > np.finfo(np.float32).max), f"{config.column}: not a finite number")
    return value


def _batch(schema: pa.Schema, columns: dict[str, np.ndarray | pa.Array]) -> pa.RecordBatch:
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in schema]
    return pa.record_batch(arrays, schema=schema)
