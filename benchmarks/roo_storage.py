"""Bytes on disk of requests with one engagement log, and of impressions with everything copied into each row.

Both in Parquet with zstd as the data set's own parts are, one file a window. An impression's row has the request's
columns, the user's attributes, its candidate with supervision, and the history of the foundation model's length. What
is the candidate's own, dense features above all, is in both: `candidate_mb`.

Shape legend: R requests, C candidates, H history tokens of all candidates together.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.options import Options, Values
from streaming.dataset import Window
from streaming.schema import CANDIDATE_COLUMNS, TIME
from streaming.workspace import Workspace


def storage(options: Options, workspace: Workspace, *, history: int) -> Values:
    """Both layouts of every window, in order of time and shuffled within the window."""
    dataset = workspace.dataset
    size = dict.fromkeys(("requests", "requests_shuffled", "impressions", "impressions_shuffled"), 0)
    own = 0
    once = (dataset.path / "users.parquet").stat().st_size
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        file = Path(folder) / "part.parquet"
        for window in dataset.windows:
            requests = dataset.requests(window.index)
            impressions = impression_table(workspace, window, requests, history=history)
            random = np.random.default_rng([window.index, 11])
            once += dataset.engagement_file(window.index).stat().st_size
            for name, table in (("requests", requests), ("impressions", impressions)):
                size[f"{name}_shuffled"] += written(file, table.take(random.permutation(len(table))))
                size[name] += written(file, table)
                own += candidate_bytes(file) if name == "requests" else 0
    request_bytes, shuffled_bytes = size["requests"] + once, size["requests_shuffled"] + once
    ordered, shuffled = size["impressions"] / request_bytes, size["impressions_shuffled"] / shuffled_bytes
    return {
        "storage_ratio": round(min(ordered, shuffled), 2),
        "storage_ratio_time_ordered": round(ordered, 2),
        "storage_ratio_shuffled": round(shuffled, 2),
        "request_mb": round(request_bytes / 1e6, 1),
        "request_shuffled_mb": round(shuffled_bytes / 1e6, 1),
        "candidate_mb": round(own / 1e6, 1),
        "engagement_mb": round(once / 1e6, 1),
        "impression_mb": round(size["impressions"] / 1e6, 1),
        "impression_shuffled_mb": round(size["impressions_shuffled"] / 1e6, 1),
    }


def impression_table(workspace: Workspace, window: Window, requests: pa.Table, *, history: int) -> pa.Table:
    """One row a candidate of the window's ``requests``, in their order."""
    lists = {name: requests[name].combine_chunks() for name in CANDIDATE_COLUMNS}
    supervision = requests["supervision"].combine_chunks()
    fields = [field.name for field in supervision.type]
    lists |= {f"supervision.{name}": supervision.field(name) for name in fields}
    owner_C = lists["item_id"].value_parent_indices()
    plain = [name for name in requests.column_names if name not in {*lists, "supervision"}]
    columns = {name: requests[name].combine_chunks().take(owner_C) for name in plain}
    users = workspace.dataset.users()
    place = np.searchsorted(users["user_id"].to_numpy(), columns["user_id"].to_numpy())
    columns |= {name: users[name].combine_chunks().take(place) for name in workspace.dataset.config.user_attributes}
    columns |= {name: each.flatten() for name, each in lists.items()}
    return pa.table(columns | histories(workspace, columns["user_id"], columns["time"], history))


def histories(workspace: Workspace, user: pa.Array, time: pa.Array, history: int) -> dict[str, pa.Array]:
    """Columns of lists, one list an impression."""
    log = workspace.engagements
    start, end = log.spans(user.to_numpy(), time.cast(pa.int64()).to_numpy(), max_length=history)
    events = log.take(start, end)
    offsets = pa.array(np.concatenate([[0], np.cumsum(end - start)]), pa.int32())
    values = {
        "item_id": pa.array(workspace.items.ids[events.item]),
        "surface": pa.array(events.surface),
        "action": pa.array(events.action),
        "time": pa.array(events.time).cast(TIME),
    }
    return {f"history_{name}": pa.ListArray.from_arrays(offsets, each) for name, each in values.items()}


def written(file: Path, table: pa.Table) -> int:
    pq.write_table(table, file, compression="zstd", compression_level=1)
    return file.stat().st_size


def candidate_bytes(file: Path) -> int:
    """Bytes of the columns that run over candidates."""
    metadata = pq.ParquetFile(file).metadata
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    ours = {*CANDIDATE_COLUMNS, "supervision"}
    return sum(each.total_compressed_size for each in columns if each.path_in_schema.split(".")[0] in ours)
