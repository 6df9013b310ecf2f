"""A checksum of its history that travels with each request: was it rebuilt as it was when the request was written?

A request stores no history. It may store, in the column ``history_check``, a checksum of (start, end, length): the
times of the user's first and last engagement before the request, and how many there are. Whoever reads the request
compares it with the engagement log at hand: a log that lost or gained some of the past, or moved its ends, is found out
before anything trains on it. What lies at the request's time or after it never matters (law L1). After Versioned late
materialisation (arXiv 2604.24806), which sends (start, end, length, checksum) with what it logs.

Shape legend: R requests.
"""

import functools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streaming.catalogue import Catalogue
from streaming.dataset import Dataset, read_parquet
from streaming.engagement_index import open_index
from streaming.errors import DataError
from streaming.files import write_file
from streaming.history import EngagementLog

COLUMN = "history_check"
_ALL = np.iinfo(np.int64).max


def history_check(log: EngagementLog, user_id: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Checksum of each request's whole history, int64 ``[R]``, for ``user_id`` and ``time`` (microseconds) ``[R]``."""
    first, end = log.spans(user_id, time, max_length=_ALL)
    said = np.zeros((3, len(user_id)), dtype=np.int64)  # of an empty history, three zeros
    some = np.flatnonzero(end > first)
    said[:, some] = log.time[first[some]], log.time[end[some] - 1], (end - first)[some]
    mixed = np.zeros(len(user_id), dtype=np.uint64)
    for part in said.view(np.uint64):
        mixed = _mixed(mixed ^ part)
    return mixed.view(np.int64)


def require_histories(
    log: EngagementLog, *, request_id: np.ndarray, user_id: np.ndarray, time: np.ndarray, said: np.ndarray, source: str
) -> None:
    """Compare what ``log`` holds with what requests from ``source`` say, all int64 ``[R]``.

    Raises:
        DataError: a history is not the one that its request was written with.
    """
    wrong = np.flatnonzero(history_check(log, user_id, time) != said)
    if len(wrong):
        row = wrong[0]
        raise DataError(
            f"{source}: row {row}, column '{COLUMN}': the history of user {user_id[row]} before request "
            f"{request_id[row]} is not the one that the request was written with ({len(wrong)} such rows of "
            f"{len(said)}). The engagement log has lost or gained something since: restore it, or import the "
            "data set again."
        )


def seal(dataset: Dataset) -> None:
    """Write ``history_check`` into every request part of ``dataset``, which nobody else reads yet."""
    items = Catalogue.read(dataset.items(), id_column="item_id", attributes=[])
    log = open_index(dataset, items)
    for window in dataset.windows:
        # The part as it lies there: what Dataset.requests adds to it is kept elsewhere.
        table = read_parquet(dataset.request_file(window.index))
        check = history_check(log, table["user_id"].to_numpy(), table["time"].cast(pa.int64()).to_numpy())
        table = table.drop_columns([COLUMN] if COLUMN in table.column_names else [])
        sealed = table.append_column(COLUMN, pa.array(check))
        write = functools.partial(pq.write_table, sealed, compression="zstd", compression_level=1)
        write_file(dataset.request_file(window.index), write)


def _mixed(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014): every bit of uint64 ``value`` moves half of the result's."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
