"""Labels that became known after their requests were written: parts of their own, joined when requests are read.

::

    DATASET/labels/window=00013/part-0.parquet   labels that became known in window 13, of requests made until then

A part is sorted by (request_id, candidate_id, task). A request part is never written again: what is published about its
rows stays aligned with it. Of several labels of a candidate the one that became known first stands, of those the one
that was written first: a conversion counts, though the request part says when its attribution window would have closed
without one.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from streaming.schema import TIME, DatasetConfig

SCHEMA = pa.schema(
    [
        pa.field("request_id", pa.int64()),
        pa.field("request_time", TIME),
        pa.field("candidate_id", pa.int32()),
        pa.field("task", pa.int8()),
        pa.field("label", pa.float32()),
        pa.field("label_time", TIME),
    ]
)
"""``request_time`` says in which window the request is; ``task`` is an index in the data set's tasks."""


_NEVER = np.iinfo(np.int64).max


def join(requests: pa.Table, labels: pa.Table, config: DatasetConfig) -> pa.Table:
    """``requests`` (``schema.request_schema``) with what ``labels`` (:data:`SCHEMA`) know, and know earlier.

    Args:
        labels: parts one after the other, in the order of their windows; those of other requests are passed over.
    """
    requests = requests.combine_chunks()
    place_L = places(requests, labels)
    time_L = labels["label_time"].cast(pa.int64()).to_numpy()
    supervision = requests["supervision"].combine_chunks()
    fields = {field.name: supervision.field(field.name) for field in supervision.type}
    for index, task in enumerate(config.tasks):
        label_name, time_name = f"label_{task.name}", f"label_time_{task.name}"
        label, time = fields[label_name], fields[time_name]
        unknown_C = time.flatten().is_null().to_numpy(zero_copy_only=False)
        label_C = label.flatten().fill_null(0.0).to_numpy(zero_copy_only=False).copy()
        time_C = time.flatten().cast(pa.int64()).fill_null(_NEVER).to_numpy(zero_copy_only=False).copy()
        about = np.flatnonzero((place_L >= 0) & (labels["task"].to_numpy() == index))
        earlier = about[time_L[about] < time_C[place_L[about]]]
        backwards = earlier[np.argsort(time_L[earlier], kind="stable")][::-1]  # what is written last stands
        target = place_L[backwards]
        label_C[target] = labels["label"].to_numpy()[backwards]
        time_C[target] = time_L[backwards]
        unknown_C[target] = False
        values, times = pa.array(label_C, mask=unknown_C), pa.array(time_C, mask=unknown_C).cast(TIME)
        fields[label_name] = pa.ListArray.from_arrays(label.offsets, values, type=label.type)
        fields[time_name] = pa.ListArray.from_arrays(time.offsets, times, type=time.type)
    joined = pa.StructArray.from_arrays([*fields.values()], fields=[*supervision.type])
    return requests.set_column(requests.schema.get_field_index("supervision"), "supervision", joined)


def places(requests: pa.Table, labels: pa.Table) -> np.ndarray:
    """Which candidate of ``requests`` each label is about, counted over all requests, int64 [L]; -1 for none."""
    request_R = requests["request_id"].to_numpy()
    lists = requests["candidate_id"].combine_chunks()
    owner_C = np.repeat(np.arange(len(request_R)), lists.value_lengths().to_numpy(zero_copy_only=False))
    if len(owner_C) == 0:
        return np.full(labels.num_rows, -1)
    order_R = np.argsort(request_R)
    asked_L = labels["request_id"].to_numpy()
    row_L = order_R[np.searchsorted(request_R[order_R], asked_L).clip(max=len(order_R) - 1)]
    key_C = owner_C << 32 | lists.flatten().to_numpy().astype(np.int64)
    key_L = row_L << 32 | labels["candidate_id"].to_numpy().astype(np.int64)
    order_C = np.argsort(key_C)
    place_L = order_C[np.searchsorted(key_C[order_C], key_L).clip(max=len(order_C) - 1)]
    return np.where((request_R[row_L] == asked_L) & (key_C[place_L] == key_L), place_L, -1)


def path_of(dataset: Path, window: int) -> Path:
    """Path of a window's part."""
    return dataset / "labels" / f"window={window:05d}" / "part-0.parquet"
