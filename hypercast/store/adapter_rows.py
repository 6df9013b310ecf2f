"""Adapters beside the rows that they are for, as rows without a vector: whoever can read the one can read the other."""

import numpy as np

from hypercast.store import own_keys
from hypercast.store.adapter import Adapter
from hypercast.store.engine import Engine, Layout


def write(engine: Engine, layout: Layout, adapter: Adapter, *, at: int) -> None:
    """Put an adapter beside its source's rows of that layout; ``at``: microseconds UTC."""
    data = np.frombuffer(adapter.to_bytes(), np.uint8)
    pieces = -(-len(data) // layout.row_bytes)
    payload = np.zeros(pieces * layout.row_bytes, np.uint8)
    payload[: len(data)] = data
    engine.put(
        adapter.source,
        layout,
        key=own_keys.of_adapter(adapter.target, pieces),
        computed_at=np.full(pieces, at, np.int64),
        history_end=np.full(pieces, len(data), np.int64),  # every piece says how long the whole is
        payload=payload.reshape(pieces, layout.row_bytes),
    )


def read(engine: Engine, source: str, target: str) -> Adapter | None:
    """The adapter from snapshot ``source`` to ``target``; None if there is none.

    Raises:
        StoreError: it is damaged.
    """
    first = engine.get(source, own_keys.of_adapter(target, 1))
    if not first.found[0]:
        return None
    length = int(first.history_end[0])
    pieces = -(-length // first.payload.shape[1])
    data = engine.get(source, own_keys.of_adapter(target, pieces)).payload.tobytes()[:length]
    return Adapter.from_bytes(data, where=f"online store: adapter from {source} to {target}")
