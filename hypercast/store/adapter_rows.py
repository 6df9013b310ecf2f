"""Adapters beside the rows that they are for, as rows without a vector: whoever can read the one can read the other."""

import numpy as np

from hypercast.store import own_keys
from hypercast.store.adapter import Adapter
from hypercast.store.engine import Engine, Layout


class AdapterRows:
    """Adapters of an engine's snapshots. What was read is kept as long as the engine has the same."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._read: dict[tuple[str, str], tuple[tuple[int, int, bytes], Adapter]] = {}

    def write(self, layout: Layout, adapter: Adapter, *, at: int) -> None:
        """Put an adapter beside its source's rows of that layout; ``at``: microseconds UTC."""
        data = np.frombuffer(adapter.to_bytes(), np.uint8)
        pieces = -(-len(data) // layout.row_bytes)
        payload = np.zeros(pieces * layout.row_bytes, np.uint8)
        payload[: len(data)] = data
        self._engine.put(
            adapter.source,
            layout,
            key=own_keys.of_adapter(adapter.target, pieces),
            computed_at=np.full(pieces, at, np.int64),
            history_end=np.full(pieces, len(data), np.int64),  # every piece says how long the whole is
            payload=payload.reshape(pieces, layout.row_bytes),
        )

    def read(self, source: str, target: str) -> Adapter | None:
        """The adapter from snapshot ``source`` to ``target``; None if there is none.

        Raises:
            StoreError: it is damaged.
        """
        first = self._engine.get(source, own_keys.of_adapter(target, 1))
        if not first.found[0]:
            return None
        length = int(first.history_end[0])
        beginning = int(first.computed_at[0]), length, first.payload.tobytes()  # of the SHA-256 of all that follows
        known = self._read.get((source, target))
        if known is not None and known[0] == beginning:
            return known[1]
        pieces = -(-length // first.payload.shape[1])
        data = self._engine.get(source, own_keys.of_adapter(target, pieces)).payload.tobytes()[:length]
        adapter = Adapter.from_bytes(data, where=f"online store: adapter from {source} to {target}")
        self._read[source, target] = beginning, adapter
        return adapter
