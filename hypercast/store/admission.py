"""What the online store takes in, and whom it lets read what.

Shape legend: N keys, D numbers of a vector.
"""

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hypercast.codec import rows as codecs
from hypercast.errors import StoreError
from hypercast.pins import Pin
from hypercast.store.adapter import Adapter
from hypercast.store.engine import Integers, Layout, are_integers
from streaming.errors import LeakageError

if TYPE_CHECKING:
    from hypercast.snapshot import Snapshot


def check_width(snapshot: "Snapshot", representation: str) -> int:
    """D of the snapshot's vectors of that name.

    Raises:
        StoreError: it has none.
    """
    width = snapshot.dims.get(representation)
    if width is None:
        raise StoreError(
            f"online store: {snapshot.name} has no vectors {representation!r}, only {sorted(snapshot.dims)}. Set "
            "representation to one of these."
        )
    return width


def layout_of(snapshot: "Snapshot", representation: str, *, codec: str | None) -> Layout:
    """Of the snapshot's rows; ``codec``: None for the snapshot's own. Raises as :func:`check_width`."""
    width, kept = check_width(snapshot, representation), codecs.named(codec or snapshot.dtype)
    return Layout(
        representation=representation,
        width=width,
        codec=kept.name,
        row_bytes=kept.row_bytes(width),
        model=snapshot.manifest["weights_digest"],
    )


def check_rows(
    snapshot: "Snapshot",
    representation: str,
    *,
    rows: int,
    vector: NDArray[np.floating[Any]],
    computed_at: Integers,
    history_end: Integers,
) -> None:
    """Refuse vectors float [N, D] that ``snapshot`` does not declare, or could not have computed then.

    Raises:
        StoreError: another width, lengths that differ, or times that are no integers of 64 bits.
        LeakageError: computed before the snapshot's watermark, or from a history that ends later (law L3).
    """
    where = f"online store: put of {rows} vectors by {snapshot.name}"
    width = check_width(snapshot, representation)
    shapes = vector.shape, computed_at.shape, history_end.shape
    if shapes != ((rows, width), (rows,), (rows,)):
        raise StoreError(
            f"{where}: vectors, computed_at and history_end have shapes {shapes}; the snapshot declares "
            f"{representation!r} with width {width}, so that they must be ({rows}, {width}), ({rows},) and ({rows},)."
        )
    if not (are_integers(computed_at) and are_integers(history_end)):
        raise StoreError(
            f"{where}: computed_at and history_end have dtypes {computed_at.dtype} and {history_end.dtype}; needed are "
            "integers below 2**63, microseconds UTC. Example: np.array([1_700_000_000_000_000])."
        )
    bad = np.flatnonzero((computed_at < snapshot.watermark) | (history_end > computed_at))
    if len(bad):
        raise LeakageError(
            f"{where}: row {bad[0]} has computed_at {computed_at[bad[0]]} and history_end {history_end[bad[0]]}; "
            f"needed is watermark {snapshot.watermark} <= computed_at, and history_end <= computed_at (law L3)."
        )


def check_now(now: int) -> int:
    """``now`` as an int.

    Raises:
        StoreError: no integer of 64 bits.
    """
    try:
        time = operator.index(now)
    except TypeError:
        time = 1 << 63
    if not -(1 << 63) < time < 1 << 63:
        raise StoreError(
            f"online store: read as of {now!r}; needed is an integer between -2**63 and 2**63, microseconds UTC. "
            "Example: 1_700_000_000_000_000."
        )
    return time


def check_reader(
    pin: Pin, snapshot: str, layout: Layout, adapter: Adapter | None, *, representation: str, width: int
) -> None:
    """Refuse to give an expert vectors that it must not read; ``adapter``: by which it would read them.

    Raises:
        RegistryError: the pin refuses the lineage, snapshot, width or codec.
        StoreError: another representation, or another width than the expert was built for.
    """
    if layout.representation != representation:
        raise StoreError(
            f"online store: {snapshot} has vectors {layout.representation!r}, not {representation!r}. Set "
            f"representation: {layout.representation}, or publish {representation!r} under another snapshot."
        )
    seen, given = (snapshot, layout.width) if adapter is None else (adapter.target, len(adapter.bias_E))
    pin.check(snapshot=seen, representation=representation, width=given, dtype=layout.codec)
    if given != width:
        raise StoreError(
            f"online store: vectors of {seen} have width {given}, but expert {pin.expert!r} was built for {width}. "
            "Pin it to a snapshot of that width, or create the expert anew."
        )


def check_adapter(pin: Pin, snapshot: str, adapter: Adapter | None, *, most: float) -> Adapter:
    """The adapter by which ``pin`` reads ``snapshot``, if there is one and its relative error is at most ``most``.

    Raises:
        StoreError: otherwise.
    """
    if adapter is not None and adapter.relative_error <= most:
        return adapter
    problem = (
        "there is no adapter"
        if adapter is None
        else f"the adapter's relative error is {adapter.relative_error:.3g}, more than {most:g}"
    )
    raise StoreError(
        f"online store: expert {pin.expert!r} is pinned to {pin.target} and asked for {snapshot}, adapted: {problem}. "
        "Read without adapt, raise adapter_error, or pin the expert anew and retrain it."
    )
