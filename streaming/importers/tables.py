"""Arrow tables of the format from flat NumPy arrays: what every importer needs at its end."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streaming.schema import TIME, DatasetConfig, engagement_schema, request_schema, supervision_fields

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """One task's labels, per candidate [C]: value, the time at which it became known, and whether it did."""

    value: Array
    time: Array
    known: npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Requests:
    """B requests with C candidates in all, the candidates of request i at [offsets[i], offsets[i + 1]).

    Attributes:
        time: Microseconds UTC [B].
        context: Name -> [B].
        tags: Name -> boolean [B].
        offsets: [B + 1], from 0 to C.
        dense: float32 [C, F].
        labels: Task name -> labels.
    """

    request_id: Array
    user_id: Array
    time: Array
    context: dict[str, Array]
    tags: dict[str, Array]
    offsets: npt.NDArray[np.int64]
    item_id: Array
    surface: Array
    dense: npt.NDArray[np.float32]
    labels: dict[str, Labels]
    weight: Array
    stratum: Array


def request_table(config: DatasetConfig, requests: Requests) -> pa.Table:
    """The request part; candidate ids count from 0 within a request, in the order given."""
    offsets = pa.array(requests.offsets.astype(np.int32))

    def lists(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, values)

    position = np.arange(requests.offsets[-1]) - np.repeat(requests.offsets[:-1], np.diff(requests.offsets))
    dense = pa.FixedSizeListArray.from_arrays(pa.array(requests.dense.reshape(-1)), requests.dense.shape[1])
    supervision = []
    for task in config.tasks:
        labels = requests.labels[task.name]
        supervision.append(lists(pa.array(labels.value, pa.float32(), mask=~labels.known)))
        supervision.append(lists(pa.array(labels.time, pa.int64(), mask=~labels.known).cast(TIME)))
    supervision.append(lists(pa.array(requests.weight, pa.float32())))
    supervision.append(lists(pa.array(requests.stratum, pa.int8())))
    schema = request_schema(config)
    columns = [
        pa.array(requests.request_id, pa.int64()),
        pa.array(requests.user_id, pa.int64()),
        pa.array(requests.time, pa.int64()).cast(TIME),
        *(pa.array(requests.context[name], pa.int64()) for name in config.context),
        *(pa.array(requests.tags[name], pa.bool_()) for name in config.tags),
        lists(pa.array(position, pa.int32())),
        lists(pa.array(requests.item_id, pa.int64())),
        lists(pa.array(requests.surface, pa.int8())),
        lists(dense),
        pa.StructArray.from_arrays(supervision, fields=supervision_fields(config)),
    ]
    return pa.table(columns, schema=schema)


def engagement_table(
    config: DatasetConfig,
    *,
    user_id: Array,
    time: Array,
    item_id: Array,
    surface: Array,
    action: Array,
    quantity: Array,
) -> pa.Table:
    """The engagement part, sorted here by (user_id, time), equal ones in the order given. All arrays [E]."""
    order = np.lexsort((time, user_id))
    schema = engagement_schema(config)
    values = (user_id, time, item_id, surface, action, quantity)
    columns = [pa.array(value[order]).cast(field.type) for value, field in zip(values, schema, strict=True)]
    return pa.table(columns, schema=schema)
