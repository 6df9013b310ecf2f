"""What was served, as it was served: every candidate's vectors and teacher logits, and the features they came with.

::

    ROOT/parts/day=2017-11-22/
      00001511308800000000-8f2c….arrow    rows of one commit of one writer; oldest first by name

A part is an Arrow IPC file, written beside, flushed and renamed: whole or absent. What was appended since the last
commit is lost with the process, and nothing else. Any number of processes may write into one folder.

A row is one of the TAE log (:mod:`hypercast.store.segment`), its vectors as float32, and beside it ``user_id``,
``surface``, ``rung``, ``dense`` and of the history its first and last time, its length and its checksum
(:mod:`streaming.history_check`). :mod:`hypercast.serving.logs.served_windows` makes of them what experts train on.

Shape legend: B requests, C candidates.
"""

import re
import shutil
import time as clock
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from hypercast.codec import arrow
from hypercast.errors import StoreError, told_of_the_disk
from hypercast.serving.features.asked import Asked, OwnHistories
from hypercast.serving.lanes.ladder import Given
from hypercast.store.segment import LOGIT, TIME
from streaming import files
from streaming.dataset import Window
from streaming.history_check import history_check

IN_RUN = Path("serving") / "served"
"""Where a service keeps it in its run folder."""
DAY = 86_400_000_000  # microseconds
VECTOR = "vector_"
"""Begins the names of columns of vectors."""
_PART = re.compile(r"\d{20}-[0-9a-f]{32}\.arrow")
_WHOLE = np.iinfo(np.int64).max


class ServedLog:
    """Appends in memory, commits to disk. For one thread.

    Args:
        root: folder, shared by all writers.
        tasks: of the teacher's logits, in their order.
    """

    def __init__(self, root: Path | str, *, tasks: Sequence[str]) -> None:
        self.root = Path(root)
        self._tasks = list(tasks)
        self._rows: dict[tuple[str, ...], list[pa.Table]] = {}

    def append(self, asked: Asked, given: Given) -> None:
        """Note what the candidates of ``asked`` were given."""
        table = _rows(asked, given, self._tasks)
        day = asked.time[asked.owner] // DAY
        for each in np.unique(day).tolist():
            part = table.filter(pa.array(day == each))
            self._rows.setdefault((_name(each), *part.schema.names), []).append(part)

    def commit(self) -> None:
        """Make durable what was appended.

        Raises:
            StoreError: the disk is full or read-only; what could not be written waits for the next commit.
        """
        with told_of_the_disk(StoreError, self.root):
            for key in list(self._rows):
                part = pa.concat_tables(self._rows[key]).combine_chunks()
                name = f"{clock.time_ns() // 1000:020d}-{uuid.uuid4().hex}.arrow"

                def write(partial: Path, part: pa.Table = part) -> None:
                    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, part.schema) as writer:
                        writer.write_table(part)

                path = self.root / "parts" / key[0] / name
                files.write_file(path, write)
                files.fsync_directory(path.parent.parent)
                del self._rows[key]

    def close(self) -> None:
        """Commit what is left."""
        self.commit()


def parts(root: Path, window: Window) -> Iterator[pa.Table]:
    """What was served of the requests of ``window``, in the order in which it was committed.

    Raises:
        StoreError: a part cannot be read.
    """
    days = range(window.start // DAY, (window.end - 1) // DAY + 1)
    found = [path for day in days for path in (root / "parts" / _name(day)).glob("*") if _PART.fullmatch(path.name)]
    for path in sorted(found, key=lambda path: path.name):
        try:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise StoreError(
                f"{path}: not a readable part of what was served ({error}). Delete it: its requests are then not "
                "trained on."
            ) from None
        time = table["time"].cast(pa.int64()).to_numpy()
        yield table.filter(pa.array((time >= window.start) & (time < window.end)))


def drop(root: Path, *, before: int) -> int:
    """Remove the parts of days that end at ``before`` (microseconds UTC) or earlier; returns how many parts."""
    removed = 0
    for folder in sorted((root / "parts").glob("day=*")):
        day = datetime.strptime(folder.name, "day=%Y-%m-%d").replace(tzinfo=UTC)
        if int(day.timestamp()) * 1_000_000 + DAY <= before:
            removed += sum(_PART.fullmatch(path.name) is not None for path in folder.iterdir())
            shutil.rmtree(folder)
    return removed


def _name(day: int) -> str:
    return datetime.fromtimestamp(day * DAY // 1_000_000, UTC).strftime("day=%Y-%m-%d")


def _rows(asked: Asked, given: Given, tasks: Sequence[str]) -> pa.Table:
    owner, count = asked.owner, len(asked.item)
    pasts = [past.time for past in asked.past]
    spans = {
        "history_first": np.array([time[0] if len(time) else 0 for time in pasts], dtype=np.int64),
        "history_last": np.array([time[-1] if len(time) else 0 for time in pasts], dtype=np.int64),
        "history_length": np.array([len(time) for time in pasts], dtype=np.int64),
        "history_check": history_check(OwnHistories.latest(asked, most=_WHOLE), asked.user_id, asked.time),
    }
    columns = {
        "request_id": pa.array(asked.request_id[owner], pa.int64()),
        "candidate_id": pa.array(asked.candidate_id, pa.int32()),
        "item_id": pa.array(asked.item_id, pa.int64()),
        "time": pa.array(asked.time[owner], pa.int64()).cast(TIME),
        "snapshot": pa.array([given.snapshot] * count, pa.string()),
        "status": pa.array(given.status_C, pa.int8()),
        "rung": pa.array(given.rung_C, pa.int8()),
        "age": pa.array(given.age_C, pa.int64()),
        "user_id": pa.array(asked.user_id[owner], pa.int64()),
        "surface": pa.array(asked.surface, pa.int8()),
        **{name: pa.array(column[owner]) for name, column in spans.items()},
        "dense": _lists(asked.dense),
        **{LOGIT + task: pa.array(given.logit_CT[:, index], pa.float32()) for index, task in enumerate(tasks)},
        **{VECTOR + name: arrow.encode(vector, "float32") for name, vector in given.vectors.items()},
    }
    return pa.table(columns)


def _lists(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
