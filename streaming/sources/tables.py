"""What an open window holds, as the parts of a data set: the same bytes in whatever order messages came."""

from collections.abc import Iterable
from operator import itemgetter
from typing import Any

import pyarrow as pa

from streaming import label_parts
from streaming.schema import TIME, DatasetConfig, engagement_schema, request_schema, supervision_fields
from streaming.sources.windows import Held, Key, OpenWindow

Rows = list[dict[str, Any]]


def request_table(config: DatasetConfig, opened: OpenWindow) -> pa.Table:
    """The window's requests, sorted by (time, request_id)."""
    rows: Rows = sorted((held.row for held in opened.requests.values()), key=itemgetter("time", "request_id"))
    supervision = []
    for task in config.tasks:
        supervision.append(_lists((row["label"][task.name] for row in rows), pa.float32()))
        supervision.append(_lists((row["label_time"][task.name] for row in rows), pa.int64()).cast(pa.list_(TIME)))
    supervision += [_lists(map(itemgetter("weight"), rows), pa.float32())]
    supervision += [_lists(map(itemgetter("stratum"), rows), pa.int8())]
    context = {name: _categorical([row["context"][name] for row in rows]) for name in config.context}
    columns = {
        "request_id": pa.array([row["request_id"] for row in rows], pa.int64()),
        "user_id": pa.array([row["user_id"] for row in rows], pa.int64()),
        "time": pa.array([row["time"] for row in rows], pa.int64()).cast(TIME),
        **context,
        **{f"tag_{name}": pa.array([row["tags"][name] for row in rows], pa.bool_()) for name in config.tags},
        "candidate_id": _lists(map(itemgetter("candidate_id"), rows), pa.int32()),
        "item_id": _lists(map(itemgetter("item_id"), rows), pa.int64()),
        "surface": _lists(map(itemgetter("surface"), rows), pa.int8()),
        "dense": _lists(map(itemgetter("dense"), rows), pa.list_(pa.float32(), len(config.dense))),
        "supervision": pa.StructArray.from_arrays(supervision, fields=supervision_fields(config)),
    }
    schema = request_schema(config, context_types={name: column.type for name, column in context.items()})
    return pa.table(columns, schema=schema)


def engagement_table(config: DatasetConfig, opened: OpenWindow) -> pa.Table:
    """The window's engagements, sorted by (user_id, time), those of one user and time by ``engagement_id``."""
    order = itemgetter("user_id", "time", "engagement_id")
    rows: Rows = sorted((held.row for held in opened.engagements.values()), key=order)
    columns = []
    for field in engagement_schema(config):
        stored = pa.int64() if field.type == TIME else field.type
        columns.append(pa.array([row[field.name] for row in rows], stored).cast(field.type))
    return pa.table(columns, schema=engagement_schema(config))


def ordered_labels(config: DatasetConfig, opened: OpenWindow) -> list[tuple[Key, Held]]:
    """The window's labels by (request_id, candidate_id, task)."""
    index = {task.name: number for number, task in enumerate(config.tasks)}
    return sorted(opened.labels.items(), key=lambda label: (*label[0][:2], index[label[0][2]]))


def label_table(config: DatasetConfig, labels: list[tuple[Key, Held]]) -> pa.Table:
    """Labels in the order given, as :data:`streaming.label_parts.SCHEMA` has them."""
    index = {task.name: number for number, task in enumerate(config.tasks)}
    columns = [
        pa.array([key[0] for key, _ in labels], pa.int64()),
        pa.array([held.row[0] for _, held in labels], pa.int64()).cast(TIME),
        pa.array([key[1] for key, _ in labels], pa.int32()),
        pa.array([index[key[2]] for key, _ in labels], pa.int8()),
        pa.array([held.row[2] for _, held in labels], pa.float32()),
        pa.array([held.row[1] for _, held in labels], pa.int64()).cast(TIME),
    ]
    return pa.table(columns, schema=label_parts.SCHEMA)


def _lists(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(list(values), pa.list_(kind))


def _categorical(values: list[Any]) -> pa.Array:
    """int64 if all values are, or else string: a value has the same code either way."""
    if any(isinstance(value, str) for value in values):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.array(values, pa.int64())
