"""Which answers to a window's requests count, held against what the data set materialises of the same requests.

Of several answers to a candidate the one counts that was logged first. Dense features are compared by value, histories
by their checksums.

Shape legend: S rows served.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from hypercast.codec import arrow
from hypercast.serving.logs import served
from hypercast.serving.logs.sealed import SealReport
from hypercast.store.keys import KeyIndex
from hypercast.store.ladder import Rung
from hypercast.store.segment import as_numpy
from streaming.dataset import Window
from streaming.history_check import history_check
from streaming.requests import Requests
from streaming.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Rows of :mod:`hypercast.serving.logs.served` that count, in the order of the request log: those that ``has`` a
    vector, and those ``without``.
    """

    has: pa.Table
    without: pa.Table
    report: SealReport


def of(root: Path, window: Window, workspace: Workspace) -> Answers:
    """What is logged under ``root`` by now of the requests of ``window``.

    Raises:
        StoreError: a part cannot be read.
    """
    requests = workspace.requests(window.index)
    tables = [table for table in served.parts(root, window) if table.num_rows]
    if not tables:
        nothing = pa.table({"request_id": pa.array([], pa.int64()), "candidate_id": pa.array([], pa.int32())})
        return Answers(has=nothing, without=nothing, report=SealReport(rows=len(requests.item)))
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    place_S = _places(table, requests)
    first_S = np.zeros(len(place_S), dtype=bool)
    first_S[np.unique(place_S, return_index=True)[1]] = True
    # In the order of the request log, so that whole windows are read in sequence.
    kept = np.flatnonzero(first_S & (place_S >= 0))
    kept = kept[np.argsort(place_S[kept])]
    answered, place = table.take(pa.array(kept)), place_S[kept]
    zeros = as_numpy(answered, "rung") == Rung.ZEROS
    return Answers(
        has=answered.filter(pa.array(~zeros)),
        without=answered.filter(pa.array(zeros)),
        report=SealReport(
            rows=len(requests.item),
            served=len(kept),
            vectors=int((~zeros).sum()),
            repeated=int(((place_S >= 0) & ~first_S).sum()),
            unknown=int((place_S < 0).sum()),
            other_dense=_other_dense(answered, requests.dense[place]),
            other_history=_other_history(answered, requests, requests.owner[place], workspace),
        ),
    )


def _places(table: pa.Table, requests: Requests) -> np.ndarray:
    """Which candidate each row served is, int64 ``[S]``; -1 for none.

    Ids alone do not tell: under an id that was used again lies what was known at another time (law L1).
    """
    keys = KeyIndex(request_id=requests.request_id[requests.owner], candidate_id=requests.candidate_id)
    place_S = keys.locate(request_id=as_numpy(table, "request_id"), candidate_id=as_numpy(table, "candidate_id"))
    found = np.flatnonzero(place_S >= 0)
    place, owner = place_S[found], requests.owner[place_S[found]]
    same = as_numpy(table, "time")[found] == requests.time[owner]
    same &= as_numpy(table, "user_id")[found] == requests.user_id[owner]
    same &= as_numpy(table, "surface")[found] == requests.surface[place]
    same &= as_numpy(table, "item_id")[found] == requests.item_id[place]
    place_S[found[~same]] = -1
    return place_S


def _other_dense(answered: pa.Table, dense_SF: np.ndarray) -> int:
    said_SF = arrow.view(answered["dense"])
    return int((np.abs(said_SF - dense_SF) > np.spacing(np.abs(dense_SF))).any(axis=1).sum())


def _other_history(answered: pa.Table, requests: Requests, owner_S: np.ndarray, workspace: Workspace) -> int:
    found_B = history_check(workspace.engagements, requests.user_id, requests.time)
    return int((as_numpy(answered, "history_check") != found_B[owner_S]).sum())
