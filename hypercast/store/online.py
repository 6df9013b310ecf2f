"""The embedded online store: point reads by key in one process, kept on disk in atomic segments.

::

    ROOT/online/FM@0007/
      candidates-00000001.arrow    surface, user_id, item_id, computed_at, history_end, vector
      users-00000001.arrow         user_id, computed_at, history_end, vector

A read climbs down a ladder, and every rung is counted: the key's own vector while FRESH, or STALE; the user's
aggregate; zeros with the mask bit off. Expiry is checked when read, against the reader's clock.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import Tensor

from hypercast import codec
from hypercast.errors import StoreError
from hypercast.lock import exclusive
from hypercast.pins import Pin, parse_snapshot_name
from hypercast.snapshot import Snapshot
from hypercast.store import status as statuses
from hypercast.store.status import Freshness, Status
from streaming import files
from streaming.errors import LeakageError

KEYS = {"candidates": ("surface", "user_id", "item_id"), "users": ("user_id",)}


class Rung(IntEnum):
    """Where a vector came from."""

    FRESH = 0
    STALE = 1
    USER = 2
    ZEROS = 3


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """What was read for N keys.

    Attributes:
        vector: float32 [N, D].
        status: uint8 [N], :class:`Status` of the key's own vector.
        rung: uint8 [N], :class:`Rung` that the vector came from.
        age: int64 [N], microseconds since the vector was computed; 0 on the rung ZEROS.
    """

    vector: np.ndarray
    status: np.ndarray
    rung: np.ndarray
    age: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Bool [N]: the mask bit; off on the rung ZEROS."""
        return self.rung != Rung.ZEROS

    def counts(self) -> dict[str, int]:
        """Number of keys by status name; all four names are always there."""
        return statuses.count(self.status)

    def rungs(self) -> dict[str, int]:
        """Number of keys by rung name; all four names are always there."""
        totals = np.bincount(self.rung, minlength=len(Rung))
        return {rung.name: int(totals[rung]) for rung in Rung}


class OnlineStore:
    """Vectors of one representation by (snapshot, surface, user, item) and by (snapshot, user).

    What was put is readable at once, and on disk after :meth:`flush`.

    Raises:
        StoreError: on opening, a file of the store is damaged.
    """

    class Config(Freshness):
        """Ages (seconds) up to which a vector is FRESH, and after which it is EXPIRED; the vectors' name."""

        representation: str = "penultimate"

        def build(self, root: Path | str) -> "OnlineStore":
            """The store under ``root``."""
            return OnlineStore(root, config=self)

    def __init__(self, root: Path | str, *, config: Config | None = None) -> None:
        self.root = Path(root)
        self.config = config or OnlineStore.Config()
        self._tables: dict[tuple[str, str], _Table] = {}
        self._rungs = dict.fromkeys((rung.name for rung in Rung), 0)
        for path in sorted((self.root / "online").glob("*/[!.]*.arrow")):
            self._load(path)

    @property
    def rungs(self) -> dict[str, int]:
        """Keys read since opening, by rung name."""
        return dict(self._rungs)

    def put(
        self,
        *,
        snapshot: Snapshot,
        surface: np.ndarray,
        user_id: np.ndarray,
        item_id: np.ndarray,
        vector: np.ndarray | Tensor,
        computed_at: np.ndarray,
        history_end: np.ndarray,
    ) -> None:
        """Store N vectors by (surface, user, item); of two for one key, the one computed later holds.

        Args:
            snapshot: that computed them.
            surface, user_id, item_id: integers [N].
            vector: [N, D] in the snapshot's width and dtype.
            computed_at: int64 [N], microseconds UTC, not before the snapshot's watermark.
            history_end: int64 [N], exclusive end of the history that was read, not after ``computed_at``.

        Raises:
            StoreError: another width or dtype than the snapshot's, or lengths that differ.
            LeakageError: times out of order.
        """
        keys = np.stack([np.asarray(column, np.int64) for column in (surface, user_id, item_id)], axis=1)
        self._put("candidates", snapshot, keys, vector, computed_at, history_end)

    def put_users(
        self,
        *,
        snapshot: Snapshot,
        user_id: np.ndarray,
        vector: np.ndarray | Tensor,
        computed_at: np.ndarray,
        history_end: np.ndarray,
    ) -> None:
        """Store N users' aggregates; shapes, units and errors as for :meth:`put`."""
        self._put("users", snapshot, np.asarray(user_id, np.int64)[:, None], vector, computed_at, history_end)

    def get(
        self, *, pin: Pin, surface: np.ndarray, user_id: np.ndarray, item_id: np.ndarray, now: int, width: int
    ) -> Lookup:
        """Vectors of N keys as of ``now``, by the ladder.

        A fixed pin reads its snapshot's vectors, one that follows reads those of the newest version in the store.

        Args:
            pin: of the expert that reads.
            surface, user_id, item_id: integers [N].
            now: microseconds UTC.
            width: D, which the expert was built for.

        Raises:
            RegistryError: the pin refuses the vectors' lineage, snapshot, width or dtype.
            StoreError: another width than asked for.
            LeakageError: a vector was computed after ``now``.
        """
        rows = len(user_id)
        vector = np.zeros((rows, width), np.float32)
        status = np.full(rows, Status.MISS, np.uint8)
        rung = np.full(rows, Rung.ZEROS, np.uint8)
        age = np.zeros(rows, np.int64)
        snapshot = self._serving(pin)
        if snapshot is not None:
            columns = [np.asarray(column, np.int64) for column in (surface, user_id, item_id)]
            own = self._read(pin, "candidates", snapshot, np.stack(columns, axis=1), now=now, width=width)
            users = self._read(pin, "users", snapshot, columns[1][:, None], now=now, width=width)
            status = own.status
            for source, usable, step in (
                (users, users.status <= Status.STALE, Rung.USER),
                (own, own.status == Status.STALE, Rung.STALE),
                (own, own.status == Status.FRESH, Rung.FRESH),
            ):
                vector[usable], age[usable], rung[usable] = source.vector[usable], source.age[usable], step
        lookup = Lookup(vector=vector, status=status, rung=rung, age=age)
        for name, number in lookup.rungs().items():
            self._rungs[name] += number
        return lookup

    def flush(self) -> list[Path]:
        """Write what was put since the last flush, one new file per table; returns the files."""
        written: list[Path] = []
        with exclusive(self.root / "online"):
            for (snapshot, kind), table in self._tables.items():
                if table.dirty:
                    folder = self.root / "online" / snapshot
                    numbers = [int(path.stem.split("-")[1]) for path in folder.glob(f"{kind}-*.arrow")]
                    path = folder / f"{kind}-{1 + max(numbers, default=0):08d}.arrow"
                    rows = table.to_arrow(KEYS[kind])
                    files.write_file(path, partial(_write, rows))
                    table.dirty.clear()
                    written.append(path)
        return written

    def _put(
        self,
        kind: str,
        snapshot: Snapshot,
        keys: np.ndarray,
        vector: np.ndarray | Tensor,
        computed_at: np.ndarray,
        history_end: np.ndarray,
    ) -> None:
        times = np.stack([np.asarray(computed_at, np.int64), np.asarray(history_end, np.int64)], axis=1)
        where = f"{self.root}: put of {len(keys)} {kind} by {snapshot.name}"
        width = snapshot.dims.get(self.config.representation)
        shape, dtype = tuple(vector.shape), str(vector.dtype).removeprefix("torch.")
        if shape != (len(keys), width) or dtype != snapshot.dtype or len(times) != len(keys):
            raise StoreError(
                f"{where}: vectors have shape {shape} and dtype {dtype}; the snapshot declares "
                f"{self.config.representation!r} of shape ({len(keys)}, {width}) and dtype {snapshot.dtype}, and there "
                f"must be as many times ({len(times)})."
            )
        vectors = vector.detach().cpu().numpy() if isinstance(vector, Tensor) else vector
        codec.check_finite(vectors)
        bad = np.flatnonzero((times[:, 0] < snapshot.watermark) | (times[:, 1] > times[:, 0]))
        if len(bad):
            raise LeakageError(
                f"{where}: row {bad[0]} has computed_at {times[bad[0], 0]} and history_end {times[bad[0], 1]}; needed "
                f"is watermark {snapshot.watermark} <= computed_at, and history_end <= computed_at (law L3)."
            )
        self._table(snapshot.name, kind, vectors).put(keys, vectors, times)

    def _table(self, snapshot: str, kind: str, vectors: np.ndarray) -> "_Table":
        table = self._tables.setdefault((snapshot, kind), _Table(vectors.shape[1], vectors.dtype))
        if table.vectors.shape[1] != vectors.shape[1] or table.vectors.dtype != vectors.dtype:
            raise StoreError(
                f"{self.root}: {kind} of {snapshot} are stored with width {table.vectors.shape[1]} as "
                f"{table.vectors.dtype}, not {vectors.shape[1]} as {vectors.dtype}. Use another folder."
            )
        return table

    def _serving(self, pin: Pin) -> str | None:
        """The snapshot whose vectors ``pin`` reads; None if the store has none of it."""
        names = {name for name, _ in self._tables}
        if pin.version is not None:
            return pin.target if pin.target in names else None
        names = {name for name in names if parse_snapshot_name(name)[0] == pin.lineage}
        return max(names, key=parse_snapshot_name, default=None)

    def _read(self, pin: Pin, kind: str, snapshot: str, keys: np.ndarray, *, now: int, width: int) -> Lookup:
        """Vectors of one table with their own status; the rung is not decided yet."""
        status = np.full(len(keys), Status.MISS, np.uint8)
        age = np.zeros(len(keys), np.int64)
        vector = np.zeros((len(keys), width), np.float32)
        table = self._tables.get((snapshot, kind))
        if table is not None:
            stored, dtype = table.vectors.shape[1], str(table.vectors.dtype)
            pin.check(snapshot=snapshot, representation=self.config.representation, width=stored, dtype=dtype)
            if stored != width:
                raise StoreError(
                    f"{self.root}: {kind} of {snapshot} have width {stored}, but expert {pin.expert!r} was built for "
                    f"{width}. Pin it to a snapshot of that width, or create the expert anew."
                )
            rows = table.locate(keys)
            found = rows >= 0
            age[found] = now - table.times[rows[found], 0]
            if (age < 0).any():
                row = int(age.argmin())
                raise LeakageError(
                    f"{self.root}: {kind} key {keys[row].tolist()} was computed {-age[row]} us after now={now}. Read "
                    "with the time of the request, and put vectors with the time at which they were computed."
                )
            status[found] = self.config.classify(age[found])
            vector[found] = table.vectors[rows[found]]
        return Lookup(vector=vector, status=status, rung=np.full(len(keys), Rung.ZEROS, np.uint8), age=age)

    def _load(self, path: Path) -> None:
        kind = path.stem.split("-")[0]
        try:
            with pa.memory_map(str(path)) as source:
                rows = pa.ipc.open_file(source).read_all()
            keys, times = (
                np.stack([rows.column(name).to_numpy() for name in names], axis=1)
                for names in (KEYS[kind], ("computed_at", "history_end"))
            )
            vectors = codec.decode(rows.column("vector"))
        except (pa.ArrowInvalid, KeyError) as error:
            raise StoreError(
                f"{path}: not a file of the online store ({error}). Delete it; what it held reads as MISS until put."
            ) from None
        table = self._table(path.parent.name, kind, vectors)
        table.put(keys, vectors, times)
        table.dirty.clear()


class _Table:
    """Keys to rows of arrays that double when full."""

    def __init__(self, width: int, dtype: np.dtype) -> None:
        self.rows: dict[tuple[int, ...], int] = {}
        self.vectors = np.zeros((16, width), dtype)
        self.times = np.zeros((16, 2), np.int64)  # computed_at, history_end
        self.dirty: set[int] = set()

    def put(self, keys: np.ndarray, vectors: np.ndarray, times: np.ndarray) -> None:
        for source, key in enumerate(map(tuple, keys.tolist())):
            row = self.rows.get(key)
            if row is None:
                row = self.rows[key] = len(self.rows)
                if row == len(self.vectors):
                    self.vectors = np.concatenate([self.vectors, np.zeros_like(self.vectors)])
                    self.times = np.concatenate([self.times, np.zeros_like(self.times)])
            elif times[source, 0] < self.times[row, 0]:
                continue
            self.vectors[row], self.times[row] = vectors[source], times[source]
            self.dirty.add(row)

    def locate(self, keys: np.ndarray) -> np.ndarray:
        """Row int64 [N] of each key, -1 where there is none."""
        return np.fromiter((self.rows.get(key, -1) for key in map(tuple, keys.tolist())), np.int64, len(keys))

    def to_arrow(self, names: tuple[str, ...]) -> pa.Table:
        rows = np.fromiter(sorted(self.dirty), np.int64, len(self.dirty))
        # The dict's insertion order is the order of rows.
        every = np.array(list(self.rows), np.int64).reshape(len(self.rows), len(names))
        columns: dict[str, pa.Array] = {name: pa.array(every[rows, place]) for place, name in enumerate(names)}
        columns["computed_at"] = pa.array(self.times[rows, 0])
        columns["history_end"] = pa.array(self.times[rows, 1])
        columns["vector"] = codec.encode(self.vectors[rows], str(self.vectors.dtype))
        return pa.table(columns)


def _write(rows: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
