"""What experts train on of what was served: a TAE log of windows that are over, and whether it is what was logged.

::

    ROOT/parts/       what was served (hypercast.serving.logs.served)
    ROOT/segments/    the TAE log of it, by snapshot and window (hypercast.store.tae_log)

A window is sealed once its requests are in the data set. Every candidate that was answered with a vector gets the row
of the first answer; what was answered without one has none and reads as MISS, as it was when it was served. If models
were swapped within the window, each snapshot has a segment of what it answered, and readers get the rows of all.

Sealing compares what was served with what the data set materialises of the same requests: dense features, and
histories by their checksums.

Shape legend: C candidates of the window's requests, S rows served.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hypercast.codec import arrow
from hypercast.pins import Pin, parse_snapshot_name
from hypercast.registry import Registry, Snapshot
from hypercast.serving.lanes.ladder import Rung
from hypercast.serving.logs import served
from hypercast.serving.logs.served import VECTOR
from hypercast.store.embeddings import Embeddings
from hypercast.store.keys import KeyIndex
from hypercast.store.segment import LOGIT, as_numpy
from hypercast.store.status import Status
from hypercast.store.tae_log import TaeLog
from streaming.dataset import Window
from streaming.history_check import history_check
from streaming.requests import Requests
from streaming.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class SealReport:
    """What came of sealing a window.

    Attributes:
        rows: candidates of the window's requests.
        served: of those, how many were served.
        vectors: of those, how many were given a vector.
        repeated: rows of a candidate that had been served before; left out.
        unknown: rows of requests that the data set has not, or has with another time, user, surface or item; left out.
        other_dense: served candidates of which a dense feature is not what the data set has, by more than one unit in
            the last place of float32.
        other_history: served candidates whose history is not what the data set has.
    """

    rows: int
    served: int
    vectors: int
    repeated: int
    unknown: int
    other_dense: int
    other_history: int


class ServedWindows(TaeLog):
    """The TAE log of what was served, under the folder of a :class:`hypercast.serving.logs.served.ServedLog`."""

    def seal(self, *, window: Window, workspace: Workspace, registry: Registry) -> SealReport:
        """Write the segments of ``window``; the same again returns the same report and writes nothing.

        Raises:
            StoreError: more has been served of the window since it was sealed, or a part is damaged.
            RegistryError: a snapshot that answered is gone from the registry.
        """
        requests = workspace.requests(window.index)
        tables = list(served.parts(self.root, window))
        table = pa.concat_tables(tables, promote_options="default").combine_chunks() if tables else None
        if table is None or not table.num_rows:
            return SealReport(rows=len(requests.item), **dict.fromkeys(_COUNTS, 0))
        place_S = _places(table, requests)
        first_S = np.zeros(len(place_S), dtype=bool)
        first_S[np.unique(place_S, return_index=True)[1]] = True
        # In the order of the request log, so that whole windows are read in sequence.
        kept = np.flatnonzero(first_S & (place_S >= 0))
        kept = kept[np.argsort(place_S[kept])]
        answered, place = table.take(pa.array(kept)), place_S[kept]
        has = answered.filter(pa.array(as_numpy(answered, "rung") != Rung.ZEROS))
        for name in sorted(has["snapshot"].unique().to_pylist()):
            snapshot = registry.get(name)
            part = has.filter(pc.field("snapshot") == name)
            self.write(
                snapshot=snapshot,
                window=window.index,
                table=self._segment(part, snapshot=snapshot, tasks=workspace.inputs.tasks),
                requests_digest=workspace.dataset.requests_digest(window.index),
            )
        return SealReport(
            rows=len(requests.item),
            served=len(kept),
            vectors=has.num_rows,
            repeated=int(((place_S >= 0) & ~first_S).sum()),
            unknown=int((place_S < 0).sum()),
            other_dense=_other_dense(answered, requests.dense[place]),
            other_history=_other_history(answered, requests, requests.owner[place], workspace),
        )

    def read(
        self,
        *,
        window: int,
        pin: Pin,
        request_id: np.ndarray,
        candidate_id: np.ndarray,
        time: np.ndarray,
        width: int,
        tasks: Sequence[str],
        representation: str = "penultimate",
        requests_digest: str | None = None,
    ) -> Embeddings:
        """As :meth:`TaeLog.read`; a pin that follows its lineage reads the rows of every snapshot that answered."""
        known = [segment.snapshot for segment in self.segments() if segment.window == window]
        names = [name for name in known if parse_snapshot_name(name)[0] == pin.lineage]
        read = partial(
            super().read,
            window=window,
            request_id=request_id,
            candidate_id=candidate_id,
            time=time,
            width=width,
            tasks=tasks,
            representation=representation,
            requests_digest=requests_digest,
        )
        if pin.version is not None or len(names) < 2:
            return read(pin=pin)
        parts = [read(pin=replace(pin, version=parse_snapshot_name(name)[1])) for name in names]
        found = parts[0]
        for part in parts[1:]:
            here = part.status != Status.MISS
            found = Embeddings(
                vector=np.where(here[:, None], part.vector, found.vector),
                teacher_logit=np.where(here[:, None], part.teacher_logit, found.teacher_logit),
                status=np.where(here, part.status, found.status),
                age=np.where(here, part.age, found.age),
                snapshot=part.snapshot,
                aligned=False,
            )
        return found

    def _segment(self, part: pa.Table, *, snapshot: Snapshot, tasks: Sequence[str]) -> pa.Table:
        # A vector that was read of the store comes alone: published is what every answer has.
        columns = [name for name in part.column_names if name.startswith(VECTOR) and not part[name].null_count]
        return self.rows(
            snapshot=snapshot,
            request_id=as_numpy(part, "request_id"),
            candidate_id=as_numpy(part, "candidate_id"),
            item_id=as_numpy(part, "item_id"),
            time=as_numpy(part, "time"),
            representations={
                name.removeprefix(VECTOR): arrow.decode(
                    part[name], codec="float32", width=snapshot.dims[name.removeprefix(VECTOR)]
                )
                for name in columns
            },
            teacher_logits={task: as_numpy(part, LOGIT + task) for task in tasks},
        )


_COUNTS = ("served", "vectors", "repeated", "unknown", "other_dense", "other_history")


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
