"""Prediction tables of what is predicted outside the experts' loop."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from streaming.requests import Requests
from transfer import predictions
from transfer.predictions import Column


def prediction_table(requests: Requests, columns: Mapping[Column, np.ndarray], *, tasks: list[str]) -> pa.Table:
    """The table of :mod:`transfer.predictions` for one surface's requests.

    Args:
        requests: of one surface, with C candidates.
        columns: probabilities ``[C]`` by arm and seed.
        tasks: all tasks of the data set, in its order; every one's labels are in the table.
    """
    owner, supervision = requests.owner, requests.supervision
    known = supervision.known_time < supervision.NEVER
    fields: dict[str, pa.Array] = {
        "request_id": pa.array(requests.request_id[owner]),
        "user_id": pa.array(requests.user_id[owner]),
        "candidate_id": pa.array(requests.candidate_id.astype(np.int32)),
        "time": pa.array(requests.time[owner]).cast(pa.timestamp("us", tz="UTC")),
        "weight": pa.array(supervision.weight),
        "stratum": pa.array(supervision.stratum),
        **{f"tag_{tag}": pa.array(flags[owner]) for tag, flags in requests.tags.items()},
        **{
            f"label_{task}": pa.array(supervision.label[:, index], mask=~known[:, index])
            for index, task in enumerate(tasks)
        },
        **{column.name: pa.array(values.astype(np.float32)) for column, values in columns.items()},
    }
    schema = predictions.schema(tasks=tasks, tags=list(requests.tags), columns=list(columns))
    return pa.table(fields, schema=schema)
