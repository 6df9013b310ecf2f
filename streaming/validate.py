"""Does a data set keep to the format? One clear error naming file, row, column and remedy, or silence.

Reads one window at a time and changes nothing on disk. Rows are counted from 0 within their file.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streaming.dataset import Dataset, Window, read_parquet
from streaming.errors import DataError
from streaming.schema import (
    CANDIDATE_COLUMNS,
    CATEGORICAL_TYPES,
    TaskConfig,
    engagement_schema,
    entity_schema,
    request_schema,
    supervision_fields,
)

Int = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def validate(dataset: Dataset) -> None:
    """Check every file of a data set.

    Raises:
        DataError: the first breach found: which file, row and column, what is wrong and how to mend it.
    """
    config = dataset.config
    items = _entities(dataset.path / "items.parquet", "item_id", config.item_attributes)
    users = _entities(dataset.path / "users.parquet", "user_id", config.user_attributes)
    request_ids = np.zeros(0, dtype=np.int64)
    for window in dataset.windows:
        ids = _requests(dataset, window, items=items, users=users)
        file = _File(dataset.request_file(window.index))
        file.require(
            ~np.isin(ids, request_ids),
            "request_id",
            "is in an earlier window already",
            "Give every request an id of its own.",
            ids,
        )
        request_ids = np.concatenate([request_ids, ids])
        _engagements(dataset, window, items=items, users=users)


class _File:
    """What is checked in one file, and how it is said.

    Args:
        row_of: Row of each value, for values that are candidates of rows.
        first_of: First value of each row, likewise.
    """

    def __init__(self, path: Path, row_of: Int | None = None, first_of: Int | None = None) -> None:
        self.path = path
        self._row_of = row_of
        self._first_of = first_of

    def error(self, where: str, what: str, remedy: str) -> DataError:
        return DataError(f"{self.path}: {where}: {what}. {remedy}")

    def require(self, good: Mask, column: str, what: str, remedy: str, values: npt.NDArray | None = None) -> None:
        """Raise about the first value that is not good, if there is one; ``values`` are what the message shows."""
        if good.all():
            return
        bad = np.flatnonzero(~good)
        where = f"row {bad[0]}, column '{column}'"
        if self._row_of is not None and self._first_of is not None:
            row = self._row_of[bad[0]]
            where = f"row {row}, candidate {bad[0] - self._first_of[row]}, column '{column}'"
        shown = f"{values[bad[0]]} " if values is not None else ""
        count = f" ({len(bad)} such values in this file)" if len(bad) > 1 else ""
        raise self.error(where, f"{shown}{what}{count}", remedy)

    def require_no_null(self, array: pa.Array | pa.ChunkedArray, column: str) -> None:
        """Raise about the first null."""
        if array.null_count:
            self.require(
                array.is_valid().to_numpy(zero_copy_only=False),
                column,
                "null is not allowed",
                "Fill it in, or leave the row out.",
            )

    def require_columns(self, table: pa.Table, schema: pa.Schema, categorical: list[str]) -> None:
        """Raise about the first column that is missing or of another type."""
        for field in schema:
            if field.name not in table.column_names:
                raise self.error(
                    f"column '{field.name}'",
                    f"is missing; the file has {', '.join(table.column_names)}",
                    f"Add it, of type {field.type}.",
                )
            found = table.schema.field(field.name).type
            allowed = CATEGORICAL_TYPES if field.name in categorical else (field.type,)
            if pa.types.is_struct(field.type) and pa.types.is_struct(found):
                self._require_fields(found, field.type, field.name)
            elif found not in allowed:
                raise self._wrong_type(field.name, found, allowed)

    def _require_fields(self, found: pa.DataType, wanted: pa.DataType, column: str) -> None:
        names = [found.field(index).name for index in range(found.num_fields)]
        for field in wanted:
            name = f"{column}.{field.name}"
            if field.name not in names:
                raise self.error(
                    f"column '{name}'", f"is missing; there are {', '.join(names)}", f"Add it, of type {field.type}."
                )
            if found.field(field.name).type != field.type:
                raise self._wrong_type(name, found.field(field.name).type, (field.type,))

    def _wrong_type(self, column: str, found: pa.DataType, allowed: tuple[pa.DataType, ...]) -> DataError:
        wanted = " or ".join(str(kind) for kind in allowed)
        return self.error(f"column '{column}'", f"has type {found}", f"It must be {wanted}: cast it before writing.")


def _entities(path: Path, key: str, attributes: list[str]) -> Int:
    """Check items.parquet or users.parquet; its ids."""
    file, table = _File(path), read_parquet(path)
    file.require_columns(table, entity_schema(key, attributes), attributes)
    file.require_no_null(table[key], key)
    ids = table[key].to_numpy()
    later = np.concatenate([[True], ids[1:] > ids[:-1]])[: len(ids)]
    file.require(later, key, "is not larger than the id before it", "Sort by id and keep one row per id.", ids)
    return ids


def _require_known(file: _File, column: str, values: Int, ids: Int, listed_in: str) -> None:
    position = np.searchsorted(ids, values)
    known = np.append(ids, -1)[position] == values if len(ids) else np.zeros(len(values), dtype=bool)
    file.require(
        known, column, f"is not in {listed_in}", f"Add a row to {listed_in}, with null attributes if unknown.", values
    )


def _require_range(file: _File, column: str, values: npt.NDArray, low: int, names: list[str]) -> None:
    allowed = ", ".join(f"{index} {name}" for index, name in enumerate(names))
    none = " or -1 for none" if low < 0 else ""
    file.require(
        (values >= low) & (values < len(names)), column, "is out of range", f"Allowed are {allowed}{none}.", values
    )


def _require_window(file: _File, time: Int, window: Window) -> None:
    """Times [N] inside the window."""
    file.require(
        (time >= window.start) & (time < window.end),
        "time",
        f"lies outside window {window.index}, [{_stamps(window.start)}, {_stamps(window.end)})",
        "Write the row to the part of the window that holds its time.",
        _stamps(time),
    )


def _requests(dataset: Dataset, window: Window, *, items: Int, users: Int) -> Int:
    """Check a request part; its request ids."""
    config, path = dataset.config, dataset.request_file(window.index)
    file, table = _File(path), read_parquet(path)
    file.require_columns(table, request_schema(config), config.context)
    plain = [
        "request_id",
        "user_id",
        "time",
        *(f"tag_{name}" for name in config.tags),
        *CANDIDATE_COLUMNS,
        "supervision",
    ]
    for column in plain:
        file.require_no_null(table[column], column)
    request_id, time = table["request_id"].to_numpy(), _microseconds(table["time"])
    _require_window(file, time, window)
    sorted_ = np.ones(len(time), dtype=bool)
    sorted_[1:] = (np.diff(time) > 0) | ((np.diff(time) == 0) & (request_id[1:] >= request_id[:-1]))
    file.require(sorted_, "time", "is out of order", "Sort by (time, request_id).", _stamps(time))
    first = np.zeros(len(time), dtype=bool)
    first[np.unique(request_id, return_index=True)[1]] = True
    file.require(first, "request_id", "is repeated", "Give every request an id of its own.", request_id)
    _require_known(file, "user_id", table["user_id"].to_numpy(), users, "users.parquet")
    _candidates(file, dataset, table, time, items)
    return request_id


def _candidates(file: _File, dataset: Dataset, table: pa.Table, time: Int, items: Int) -> None:
    """Check the lists over candidates: those that models read, then supervision."""
    config = dataset.config
    supervision = table["supervision"].combine_chunks()
    lists = {name: table[name].combine_chunks() for name in CANDIDATE_COLUMNS}
    for field in supervision_fields(config):
        array = supervision.field(field.name)
        file.require_no_null(array, f"supervision.{field.name}")
        lists[f"supervision.{field.name}"] = array
    lengths = lists["candidate_id"].value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    for name, array in lists.items():
        found = array.value_lengths().to_numpy(zero_copy_only=False)
        remedy = "All lists of a row run over the same candidates and must be equally long."
        file.require(found == lengths, name, "values, not as many as in candidate_id", remedy, found)

    row_of = np.repeat(np.arange(len(time)), lengths)
    each = _File(file.path, row_of, np.cumsum(lengths) - lengths)
    flat = {name: array.flatten() for name, array in lists.items()}
    may_be_null = {f"supervision.{kind}_{task.name}" for task in config.tasks for kind in ("label", "label_time")}
    for name in flat.keys() - may_be_null:
        each.require_no_null(flat[name], name)

    candidate_id = flat["candidate_id"].to_numpy().astype(np.int64)
    order = np.lexsort((candidate_id, row_of))
    same = (np.diff(row_of[order]) == 0) & (np.diff(candidate_id[order]) == 0)
    unique = np.ones(len(order), dtype=bool)
    unique[order[1:][same]] = False
    each.require(
        unique,
        "candidate_id",
        "is repeated within its request",
        "Number the candidates of a request 0, 1, 2, …",
        candidate_id,
    )
    _require_known(each, "item_id", flat["item_id"].to_numpy(), items, "items.parquet")
    _require_range(each, "surface", flat["surface"].to_numpy(), 0, config.surfaces)
    _dense(each, flat["dense"], config.dense)
    weight = flat["supervision.weight"].to_numpy()
    remedy = "A weight is the number of candidates that this one stands for: 0 or more."
    each.require(np.isfinite(weight) & (weight >= 0), "supervision.weight", "is not allowed", remedy, weight)
    for task in config.tasks:
        label, known_at = flat[f"supervision.label_{task.name}"], flat[f"supervision.label_time_{task.name}"]
        _labels(each, task, label, known_at, time[row_of])


def _dense(file: _File, dense: pa.Array, names: list[str]) -> None:
    values = dense.flatten()
    width = max(1, len(names))
    if values.null_count:
        bad = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]
        good = np.arange(len(dense)) != bad // width
        file.require(good, f"dense[{names[bad % width]}]", "null is not allowed", "Write 0 where nothing is known.")
    table = values.to_numpy(zero_copy_only=False).reshape(-1, len(names))
    finite = np.isfinite(table)
    if not finite.all():
        column = int(np.flatnonzero(~finite.all(axis=0))[0])
        remedy = "Dense features must be finite: write 0 where nothing is known."
        file.require(finite[:, column], f"dense[{names[column]}]", "is not finite", remedy, table[:, column])


def _labels(file: _File, config: TaskConfig, label: pa.Array, known_at: pa.Array, time: Int) -> None:
    """Check one task's labels [C] and label times [C] against the requests' times [C]."""
    task, delay = config.name, int(config.delay_seconds * 1e6)
    name, time_name = f"supervision.label_{task}", f"supervision.label_time_{task}"
    known = label.is_valid().to_numpy(zero_copy_only=False)
    timed = known_at.is_valid().to_numpy(zero_copy_only=False)
    remedy = "A label and the time at which it became known are both there or both null."
    file.require(timed | ~known, time_name, f"is null where label_{task} is known", remedy)
    file.require(known | ~timed, name, f"is null where label_time_{task} is known", remedy)
    value = label.fill_null(0.0).to_numpy(zero_copy_only=False)
    file.require(
        (value == 0) | (value == 1), name, "is not a binary label", "Allowed are 0 and 1, or null if not known.", value
    )
    at = np.where(timed, _microseconds(known_at.cast(pa.int64()).fill_null(0)), time)
    remedy = "A label becomes known with its request or after it."
    file.require(at >= time, time_name, "is earlier than the request's time", remedy, _stamps(at))
    remedy = f"Raise delay_seconds of task {task} in dataset.yaml (now {delay / 1e6:g}), or correct the time."
    file.require(at - time <= delay, time_name, "is later than the task's largest delay allows", remedy, _stamps(at))
    if config.attribution_seconds is not None:
        counts = (value == 0) | (at - time <= int(config.attribution_seconds * 1e6))
        remedy = f"Raise attribution_seconds of task {task} (now {config.attribution_seconds:g}), or write 0."
        file.require(counts, time_name, "is of a 1 after the attribution window", remedy, _stamps(at))


def _engagements(dataset: Dataset, window: Window, *, items: Int, users: Int) -> None:
    """Check an engagement part."""
    config, path = dataset.config, dataset.engagement_file(window.index)
    file, table, schema = _File(path), read_parquet(path), engagement_schema(config)
    file.require_columns(table, schema, [])
    for column in schema.names:
        file.require_no_null(table[column], column)
    user, time = table["user_id"].to_numpy(), _microseconds(table["time"])
    _require_window(file, time, window)
    sorted_ = np.ones(len(time), dtype=bool)
    sorted_[1:] = (user[1:] > user[:-1]) | ((user[1:] == user[:-1]) & (np.diff(time) >= 0))
    file.require(sorted_, "time", "is out of order", "Sort by (user_id, time).", _stamps(time))
    _require_known(file, "user_id", user, users, "users.parquet")
    _require_known(file, "item_id", table["item_id"].to_numpy(), items, "items.parquet")
    _require_range(file, "surface", table["surface"].to_numpy(), -1, config.surfaces)
    _require_range(file, "action", table["action"].to_numpy(), 0, config.actions)
    quantity = table["quantity"].to_numpy()
    file.require(
        np.isfinite(quantity) & (quantity >= 0), "quantity", "is not allowed", "It must be finite, 0 or more.", quantity
    )


def _microseconds(times: pa.Array | pa.ChunkedArray) -> Int:
    return times.cast(pa.int64()).to_numpy(zero_copy_only=False)


def _stamps(time: Int | int) -> npt.NDArray[np.datetime64]:
    """Microseconds UTC as something that prints as a date."""
    return np.asarray(time, dtype="datetime64[us]")
