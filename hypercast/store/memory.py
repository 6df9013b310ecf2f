"""The engine that keeps nothing: dictionaries in one process."""

from hypercast.errors import StoreError
from hypercast.pins import parse_snapshot_name
from hypercast.store import engine
from hypercast.store.engine import KEPT, Bytes, ConflictError, Damage, Integers, Layout, Rows, Stats
from streaming.config import Config as BaseConfig

WHERE = "memory"


class MemoryEngine:
    """See :class:`hypercast.store.engine.Engine`."""

    class Config(BaseConfig):
        """Nothing to set."""

        def build(self) -> "MemoryEngine":
            """An empty engine."""
            return MemoryEngine()

    def __init__(self) -> None:
        self._layouts: dict[str, Layout] = {}
        # By key, then by computed_at: history_end and payload.
        self._rows: dict[str, dict[tuple[int, ...], dict[int, tuple[int, bytes]]]] = {}
        self._pointers: dict[str, str] = {}

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
        arrays = engine.check_put(
            WHERE, snapshot, layout, self._layouts.get(snapshot), arrays=(key, computed_at, history_end, payload)
        )
        if not len(key):
            return
        self._layouts[snapshot] = layout
        rows = self._rows.setdefault(snapshot, {})
        for one, at, end, data in zip(*(array.tolist() for array in arrays[:3]), arrays[3], strict=True):
            versions = rows.setdefault(tuple(one), {})
            versions[at] = end, data.tobytes()
            if len(versions) > KEPT:
                del versions[min(versions)]

    def commit(self, snapshot: str) -> None:
        parse_snapshot_name(snapshot)

    def get(self, snapshot: str, key: Integers, *, as_of: int | None = None) -> Rows:
        key = engine.check_key(WHERE, key)
        layout = self.layout(snapshot)
        found = engine.no_rows(len(key), layout.row_bytes if layout else 0)
        for place, one in enumerate(map(tuple, key.tolist())):
            versions = self._rows.get(snapshot, {}).get(one, {})
            at = max((at for at in versions if as_of is None or at <= as_of), default=None)
            if at is not None:
                found.found[place], found.computed_at[place] = True, at
                found.history_end[place] = versions[at][0]
                found.payload[place] = list(versions[at][1])
        return found

    def layout(self, snapshot: str) -> Layout | None:
        parse_snapshot_name(snapshot)
        return self._layouts.get(snapshot)

    def snapshots(self) -> list[str]:
        return sorted(self._rows, key=parse_snapshot_name)

    def stats(self, snapshot: str) -> Stats:
        layout = self.layout(snapshot)
        if layout is None:
            return Stats(rows=0, bytes=0, segments=0)
        rows = sum(len(versions) for versions in self._rows[snapshot].values())
        return Stats(rows=rows, bytes=rows * layout.row_bytes, segments=1)

    def drop(self, snapshot: str) -> None:
        if self.layout(snapshot) is None or snapshot in self._pointers.values():
            raise StoreError(engine.cannot_drop(WHERE, snapshot, self._pointers))
        del self._rows[snapshot], self._layouts[snapshot]

    def collect(self) -> int:
        return 0

    def pointers(self) -> dict[str, str]:
        return dict(self._pointers)

    def move(self, pointer: str, *, expected: str | None, to: str | None) -> None:
        engine.check_pointer(WHERE, pointer)
        if to is not None and self.layout(to) is None:
            raise StoreError(engine.no_such_rows(WHERE, pointer, to))
        actual = self._pointers.get(pointer)
        if actual != expected:
            raise ConflictError(engine.moved_meanwhile(WHERE, pointer, expected=expected, actual=actual))
        if to is None:
            self._pointers.pop(pointer, None)
        else:
            self._pointers[pointer] = to

    def verify(self) -> list[Damage]:
        return []

    def close(self) -> None:
        self._rows.clear()
        self._layouts.clear()
        self._pointers.clear()
