"""What an engine of the online store is: rows of bytes by integer keys, by snapshot, and pointers that move at once.

Engines know nothing of vectors, pins or ages: :mod:`hypercast.store.online` does, over any of them. None imports torch.

=============  ====================================================================================================
``memory``     one process, nothing kept: for tests, and the plainest reading of this contract
``local``      one machine, any number of processes: sorted memory-mapped segments (:mod:`hypercast.store.local`)
``valkey``     many machines: a Valkey or Redis server or cluster (:mod:`hypercast.store.valkey`)
=============  ====================================================================================================

**Rows.** A key is three integers, (surface, user, item); a row is a key, the time it was computed at, the end of the
history that was read, and the encoded vector. Rows of one key that differ in ``computed_at`` stand side by side; a row
put with the same key and ``computed_at`` replaces the earlier one. At least the :data:`KEPT` latest rows of a key are
kept; older ones may go at any time.

**Snapshots.** Rows belong to the snapshot that computed them; two snapshots never mix. The first put of a snapshot
fixes its :class:`Layout`; a put with another is refused, and so is one by other weights under the same name.

**Seeing.** What was put is seen by the engine that put it at once, and by every other one at the latest after
``commit``, which returns when it would survive the end of the process (``local``, and a server that is set to: of the
machine). A row is seen whole or not at all.

**Pointers.** A name (``FM/latest``) that points to a snapshot. It moves only from what the mover believes it to be: of
several movers one wins, the others are told. A snapshot that a pointer names cannot be dropped.

Shape legend: N keys, B bytes of an encoded vector.
"""

from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hypercast.errors import StoreError
from hypercast.pins import NAME, parse_snapshot_name

Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]

KEPT = 2
"""Rows of one key that are kept at least: the latest, and what was there before it."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the bytes of a snapshot's rows mean.

    Attributes:
        representation: name of the vectors.
        width: D, numbers of a vector.
        codec: how they are encoded (:mod:`hypercast.codec`).
        row_bytes: B.
        model: digest of the weights that computed them, so that two models of one name do not mix.
    """

    representation: str
    width: int
    codec: str
    row_bytes: int
    model: str

    def to_json(self) -> dict[str, Any]:
        """What the constructor takes."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What was read for N keys; where ``found`` is off the other values are zeros.

    Attributes:
        found: bool [N].
        computed_at: int64 [N], microseconds UTC.
        history_end: int64 [N], microseconds UTC.
        payload: uint8 [N, B].
    """

    found: Flags
    computed_at: Integers
    history_end: Integers
    payload: Bytes


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something that is not what was written: ``where`` (file or key), ``what``, and the ``remedy``."""

    where: str
    what: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Of one snapshot: ``rows``, at most (those that newer ones replace may be counted until they are gone), ``bytes``
    that they take, and ``segments``, pieces that a read looks into (1 where there are no pieces).
    """

    rows: int
    bytes: int
    segments: int


class ConflictError(StoreError):
    """Somebody else has moved the pointer, or written, in between."""


class UnreachableError(StoreError):
    """The server does not answer."""


@runtime_checkable
class Engine(Protocol):
    """See the module. Arrays are NumPy's; keys are int64 ``[N, 3]``; N may be 0; times are microseconds UTC.

    All methods raise :class:`UnreachableError` if the engine is a server that does not answer in time, and StoreError,
    naming the file, for a file that is not what was written. Snapshot names are checked (``FM@0007``).
    """

    def put(
        self,
        snapshot: str,
        layout: Layout,
        *,
        key: Integers,
        computed_at: Integers,
        history_end: Integers,
        payload: Bytes,
    ) -> None:
        """Add N rows. Of rows with equal key and ``computed_at`` in one call the last holds.

        Raises:
            StoreError: shapes that differ, no integers of 64 bits, or another layout than the snapshot has.
        """

    def commit(self, snapshot: str) -> None:
        """Return when all that was put is kept and seen by others. Nothing to do for a snapshot without rows."""

    def get(self, snapshot: str, key: Integers, *, as_of: int | None = None) -> Rows:
        """For each key the row with the greatest ``computed_at``; not after ``as_of``, if given.

        A snapshot without rows has none of the keys (``payload`` then has no columns).
        """

    def layout(self, snapshot: str) -> Layout | None:
        """Of the snapshot's rows; None if it has none."""

    def snapshots(self) -> list[str]:
        """Names of the snapshots that have rows, by lineage and version."""

    def stats(self, snapshot: str) -> Stats:
        """Size of what is kept of a snapshot; zeros if it has no rows."""

    def drop(self, snapshot: str) -> None:
        """Forget a snapshot's rows, at once for readers; :meth:`collect` frees their room.

        Raises:
            StoreError: a pointer names it, or it has no rows.
        """

    def collect(self) -> int:
        """Free what nothing refers to any more (dropped rows, replaced ones, left-overs of the killed); bytes freed."""

    def pointers(self) -> dict[str, str]:
        """Snapshot by pointer name."""

    def move(self, pointer: str, *, expected: str | None, to: str | None) -> None:
        """Let ``pointer`` name the snapshot ``to``, if it names ``expected`` now; None stands for no pointer.

        Raises:
            ConflictError: it names something else.
            StoreError: a bad name, or ``to`` has no rows.
        """

    def verify(self) -> list[Damage]:
        """Read everything and compare with its checksums; empty if all is well."""

    def close(self) -> None:
        """Let go of files and connections. What was put and not committed is lost with ``local``."""


def check_layout(where: str, snapshot: str, layout: Layout, existing: Layout | None) -> None:
    """Refuse what is not as the snapshot's rows are; ``existing``: how they are, None if there are none.

    Raises:
        StoreError: the layouts differ.
    """
    if existing is not None and existing.model != layout.model:
        raise StoreError(
            f"{where}: rows of {snapshot} were computed by other weights ({existing.model[:12]}) than those of this "
            f"{snapshot} ({layout.model[:12]}). A snapshot has one layout, and two runs of one lineage need a store "
            f"each: give this one its own folder or prefix, or drop {snapshot} if the other run is gone."
        )
    if existing is not None and existing != layout:
        raise StoreError(
            f"{where}: rows of {snapshot} are {existing}, those put are {layout}. A snapshot has one layout: publish "
            "under another snapshot, or drop this one first."
        )


def check_put(
    where: str, snapshot: str, layout: Layout, existing: Layout | None, *, arrays: tuple[Any, Any, Any, Any]
) -> tuple[Integers, Integers, Integers, Bytes]:
    """The arrays (key, computed_at, history_end, payload) of a put in the contract's dtypes.

    Raises:
        StoreError: see :meth:`Engine.put`.
    """
    parse_snapshot_name(snapshot)
    check_layout(where, snapshot, layout, existing)
    for array in arrays[:3]:
        if not are_integers(np.asarray(array)):
            raise StoreError(f"{where}: put to {snapshot} with keys or times that are no integers of 64 bits.")
    key, computed_at, history_end = (np.ascontiguousarray(array, np.int64) for array in arrays[:3])
    payload = np.ascontiguousarray(arrays[3])
    rows = len(key)
    shapes = (key.shape, computed_at.shape, history_end.shape, payload.shape)
    if shapes != ((rows, 3), (rows,), (rows,), (rows, layout.row_bytes)) or payload.dtype != np.uint8:
        raise StoreError(
            f"{where}: put to {snapshot} with shapes of key, computed_at, history_end, payload {shapes} and payload "
            f"dtype {payload.dtype}; needed are (N, 3), (N,), (N,), (N, {layout.row_bytes}) and uint8."
        )
    return key, computed_at, history_end, payload


def are_integers(array: NDArray[Any]) -> bool:
    """Whether all numbers are what int64 holds: no floats, and nothing beyond 2**63 - 1. Empty arrays are."""
    if array.dtype == np.uint64 and array.size:
        return int(array.max()) <= np.iinfo(np.int64).max
    return array.dtype.kind in "iu" or not array.size


def check_key(where: str, key: Any) -> Integers:
    """Keys int64 ``[N, 3]`` in one piece.

    Raises:
        StoreError: not integers, or not three to a key.
    """
    array = np.asarray(key)
    if array.ndim != 2 or array.shape[1] != 3 or not are_integers(array):
        raise StoreError(
            f"{where}: keys have shape {array.shape} and dtype {array.dtype}; needed are integers [N, 3] of 64 "
            "bits: surface, user, item. Example: np.array([[0, 17, 4]])."
        )
    return np.ascontiguousarray(array, np.int64)


def check_pointer(where: str, pointer: str) -> str:
    """A pointer's name: LINEAGE/CHANNEL, each a letter followed by at most 63 letters, digits, ``_`` or ``-``.

    Raises:
        StoreError: another name.
    """
    parts = pointer.split("/") if isinstance(pointer, str) else []
    if len(parts) != 2 or not all(NAME.fullmatch(part) for part in parts):
        raise StoreError(
            f"{where}: pointer {pointer!r} cannot be used: allowed is LINEAGE/CHANNEL, each a letter followed by at "
            "most 63 letters, digits, '_' or '-'. Example: 'FM/latest'."
        )
    return pointer


def no_rows(keys: int, row_bytes: int) -> Rows:
    """The answer to keys that are not there."""
    return Rows(
        found=np.zeros(keys, np.bool_),
        computed_at=np.zeros(keys, np.int64),
        history_end=np.zeros(keys, np.int64),
        payload=np.zeros((keys, row_bytes), np.uint8),
    )


def cannot_drop(where: str, snapshot: str, pointers: dict[str, str]) -> str:
    """Why a snapshot is not dropped."""
    named = [pointer for pointer, name in pointers.items() if name == snapshot]
    if named:
        return f"{where}: {snapshot} cannot be dropped: {named[0]} points to it. Move the pointer first."
    return f"{where}: {snapshot} cannot be dropped: it has no rows."


def no_such_rows(where: str, pointer: str, to: str) -> str:
    """Why a pointer does not move to a snapshot without rows."""
    return f"{where}: {pointer} cannot point to {to}, which has no rows. Put and commit them first."


def moved_meanwhile(where: str, pointer: str, *, expected: str | None, actual: str | None) -> str:
    """What the loser of several movers is told."""
    return (
        f"{where}: {pointer} points to {actual or 'nothing'}, not to {expected or 'nothing'} as expected: somebody "
        "else has moved it. Read it again and decide anew."
    )
