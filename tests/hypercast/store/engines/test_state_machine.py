"""The contract against a plain model, by random histories of calls, on every engine."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from hypercast.errors import StoreError
from hypercast.store.engine import KEPT, ConflictError, Engine, Layout

SNAPSHOTS = ["FM@0001", "FM@0002"]
POINTERS = ["FM/latest", "FM/stable"]
LAYOUTS = [
    Layout(representation="penultimate", width=1, codec="bytes", row_bytes=size, model="ab12") for size in (3, 8)
]
# Few keys and times, so that they meet; some that a careless order or a careless hash would mistake.
KEYS = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (-1, 2**63 - 1, -(2**63)), (7, 7, 7)]

snapshots, pointers, keys = st.sampled_from(SNAPSHOTS), st.sampled_from(POINTERS), st.sampled_from(KEYS)
times = st.integers(-3, 6)
rows = st.lists(st.tuples(keys, times, st.integers(1, 255)), max_size=12)
Version = tuple[int, int]


class Machine(RuleBasedStateMachine):
    """One writer; ``rows`` is what it has put, ``committed`` what outlives it."""

    def __init__(self, place: Any) -> None:
        super().__init__()
        self.place = place
        self.engine: Engine = place.open()
        # By snapshot: the layout, and by key the byte by time.
        self.rows: dict[str, tuple[Layout, dict[Any, dict[int, int]]]] = {}
        self.committed: dict[str, tuple[Layout, dict[Any, dict[int, int]]]] = {}
        self.pointers: dict[str, str] = {}

    def teardown(self) -> None:
        self.place.close()

    @rule(snapshot=snapshots, layout=st.sampled_from(LAYOUTS), rows=rows)
    def put(self, snapshot: str, layout: Layout, rows: list[tuple[Any, int, int]]) -> None:
        at = np.array([row[1] for row in rows], np.int64)
        arguments = {
            "key": np.array([row[0] for row in rows], np.int64).reshape(-1, 3),
            "computed_at": at,
            "history_end": at - 100,
            "payload": np.array([[row[2]] * layout.row_bytes for row in rows], np.uint8).reshape(-1, layout.row_bytes),
        }
        if snapshot in self.rows and self.rows[snapshot][0] != layout:
            with pytest.raises(StoreError, match="one layout"):
                self.engine.put(snapshot, layout, **arguments)
            return
        self.engine.put(snapshot, layout, **arguments)
        if rows:
            _, versions = self.rows.setdefault(snapshot, (layout, {}))
            for key, time, byte in rows:
                versions.setdefault(key, {})[time] = byte

    @rule(snapshot=snapshots)
    def commit(self, snapshot: str) -> None:
        self.engine.commit(snapshot)
        if snapshot in self.rows:
            layout, versions = self.rows[snapshot]
            self.committed[snapshot] = layout, {key: dict(one) for key, one in versions.items()}

    @rule(snapshot=snapshots, asked=st.lists(keys, max_size=8), as_of=st.none() | times)
    def get(self, snapshot: str, asked: list[Any], as_of: int | None) -> None:
        self.check(self.engine, self.rows, snapshot, asked, as_of)

    @rule(snapshot=snapshots)
    def drop(self, snapshot: str) -> None:
        if snapshot in self.rows and snapshot not in self.pointers.values():
            self.engine.drop(snapshot)
            del self.rows[snapshot]
            self.committed.pop(snapshot, None)
        else:
            with pytest.raises(StoreError, match="cannot be dropped"):
                self.engine.drop(snapshot)

    @precondition(lambda self: self.rows.keys() == self.committed.keys())
    @rule(pointer=pointers, expected=st.none() | snapshots, to=st.none() | snapshots)
    def move(self, pointer: str, expected: str | None, to: str | None) -> None:
        if to is not None and to not in self.rows:
            with pytest.raises(StoreError, match="has no rows"):
                self.engine.move(pointer, expected=expected, to=to)
        elif expected != self.pointers.get(pointer):
            with pytest.raises(ConflictError, match="somebody else"):
                self.engine.move(pointer, expected=expected, to=to)
        else:
            self.engine.move(pointer, expected=expected, to=to)
            self.pointers = {name: one for name, one in self.pointers.items() if name != pointer}
            if to is not None:
                self.pointers[pointer] = to

    @rule()
    def collect(self) -> None:
        assert self.engine.collect() >= 0

    @rule()
    def verify(self) -> None:
        assert self.engine.verify() == []

    @precondition(lambda self: self.place.persistent)
    @rule()
    def reopen(self) -> None:
        for snapshot in SNAPSHOTS:
            self.commit(snapshot)
        self.engine.close()
        self.engine = self.place.open()

    @precondition(lambda self: self.place.shared)
    @rule(snapshot=snapshots, as_of=st.none() | times)
    def other_reader(self, snapshot: str, as_of: int | None) -> None:
        self.commit(snapshot)
        self.check(self.place.open(), self.rows, snapshot, KEYS, as_of)

    @invariant()
    def lists_agree(self) -> None:
        assert self.engine.snapshots() == sorted(self.rows)
        assert self.engine.pointers() == self.pointers
        for snapshot in SNAPSHOTS:
            layout, versions = self.rows.get(snapshot, (None, {}))
            assert self.engine.layout(snapshot) == layout
            assert self.engine.stats(snapshot).rows >= len(versions)

    @staticmethod
    def check(engine: Engine, model: dict[str, Any], snapshot: str, asked: list[Any], as_of: int | None) -> None:
        layout, versions = model.get(snapshot, (None, {}))
        rows = engine.get(snapshot, np.array(asked, np.int64).reshape(-1, 3), as_of=as_of)
        assert rows.payload.shape == (len(asked), layout.row_bytes if layout else 0)
        for place, key in enumerate(asked):
            known = versions.get(key, {})
            allowed = sorted((time for time in known if as_of is None or time <= as_of), reverse=True)
            kept = sorted(known, reverse=True)[:KEPT]
            if not rows.found[place]:
                # Only what at least KEPT later rows follow may be gone.
                assert not set(allowed) & set(kept)
                assert not rows.payload[place].any() and rows.computed_at[place] == rows.history_end[place] == 0
                continue
            time = int(rows.computed_at[place])
            assert time in allowed and (time == allowed[0] or allowed[0] not in kept)
            assert rows.history_end[place] == time - 100
            assert set(rows.payload[place].tolist()) == {known[time]}


def test_histories(make_place: Callable[[], Any]) -> None:
    run_state_machine_as_test(
        lambda: Machine(make_place()),
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
def test_many_histories(make_place: Callable[[], Any]) -> None:
    run_state_machine_as_test(
        lambda: Machine(make_place()),
        settings=settings(
            max_examples=500,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
