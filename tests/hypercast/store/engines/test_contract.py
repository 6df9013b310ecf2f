"""Every sentence of the contract of engines, on every engine."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from hypercast.errors import StoreError
from hypercast.store.engine import ConflictError, Engine, Layout, Rows
from streaming.errors import UserError

FM, OLD = "FM@0002", "FM@0001"
LAYOUT = Layout(representation="penultimate", width=2, codec="fp16", row_bytes=4, model="ab12")
LOW, HIGH = np.iinfo(np.int64).min, np.iinfo(np.int64).max
HOSTILE = ["../x", "FM@1", "FM", "", "FM@0001/../../x", "FM\n@0001", "Ü@0001", "@0001", "FM@0001\n", "a" * 65 + "@0001"]


def keys(*key: tuple[int, int, int]) -> np.ndarray:
    return np.array(key, np.int64).reshape(-1, 3)


def payload_of(*values: int, row_bytes: int = 4) -> np.ndarray:
    """Rows that hold one byte each, over and over."""
    return np.repeat(np.array(values, np.uint8)[:, None], row_bytes, axis=1).reshape(-1, row_bytes)


def put(
    engine: Engine, *rows: tuple[tuple[int, int, int], int, int], snapshot: str = FM, layout: Layout = LAYOUT
) -> None:
    """Rows of (key, computed_at, byte); ``history_end`` is one before ``computed_at``."""
    at = np.array([row[1] for row in rows], np.int64)
    engine.put(
        snapshot,
        layout,
        key=keys(*(row[0] for row in rows)),
        computed_at=at,
        history_end=at - 1,
        payload=payload_of(*(row[2] for row in rows), row_bytes=layout.row_bytes),
    )


def values(rows: Rows) -> list[tuple[int, int, int] | None]:
    """(computed_at, history_end, byte) of each row; None where there is none."""
    assert (rows.found.dtype, rows.payload.dtype) == (
        np.bool_,
        np.uint8,
    ) and rows.computed_at.dtype == rows.history_end.dtype == np.int64
    found = []
    for place, there in enumerate(rows.found.tolist()):
        data = set(rows.payload[place].tolist())
        one = (int(rows.computed_at[place]), int(rows.history_end[place]), min(data, default=0))
        assert len(data) <= 1
        assert there or one == (0, 0, 0)
        found.append(one if there else None)
    return found


def get(engine: Engine, *key: tuple[int, int, int], snapshot: str = FM, as_of: int | None = None) -> list[Any]:
    return values(engine.get(snapshot, keys(*key), as_of=as_of))


A, B, C = (0, 1, 2), (0, 1, 3), (1, 1, 2)


class TestRows:
    def test_engine_is_one(self, engine: Engine) -> None:
        assert isinstance(engine, Engine)

    def test_rows_are_found_in_the_order_asked_for_and_zeros_where_there_are_none(self, engine: Engine) -> None:
        put(engine, (A, 10, 1), (B, 20, 2))
        for _ in range(2):
            assert get(engine, B, C, A, B) == [(20, 19, 2), None, (10, 9, 1), (20, 19, 2)]
            engine.commit(FM)

    def test_empty_batches(self, engine: Engine) -> None:
        assert engine.get(FM, keys()).payload.shape == (0, 0)
        put(engine)
        engine.commit(FM)
        assert engine.layout(FM) is None and engine.snapshots() == []
        put(engine, (A, 10, 1))
        put(engine)
        for _ in range(2):
            assert engine.get(FM, keys()).payload.shape == (0, 4)
            assert get(engine) == [] and get(engine, A) == [(10, 9, 1)]
            engine.commit(FM)

    def test_snapshot_without_rows_has_none_of_the_keys(self, engine: Engine) -> None:
        rows = engine.get(FM, keys(A, B))
        assert rows.payload.shape == (2, 0) and values(rows) == [None, None]
        assert engine.layout(FM) is None
        assert engine.snapshots() == []
        engine.commit(FM)

    def test_every_integer_is_a_key(self, engine: Engine) -> None:
        extremes = [(a, b, c) for a in (LOW, 0, HIGH) for b in (LOW, -1, HIGH) for c in (LOW, 1, HIGH)]
        put(engine, *((key, 10, place) for place, key in enumerate(extremes)))
        for _ in range(2):
            assert get(engine, *extremes) == [(10, 9, place) for place in range(27)]
            assert get(engine, (1, 2, 3), (LOW, LOW, 0)) == [None, None]
            engine.commit(FM)

    def test_history_end_may_be_any_integer(self, engine: Engine) -> None:
        ends = np.array([LOW, HIGH])
        engine.put(FM, LAYOUT, key=keys(A, B), computed_at=ends * 0, history_end=ends, payload=payload_of(1, 2))
        engine.commit(FM)
        np.testing.assert_array_equal(engine.get(FM, keys(A, B)).history_end, ends)

    @pytest.mark.parametrize("row_bytes", [1, 7, 8, 512, 1031])
    def test_payloads_of_any_width_come_back_byte_by_byte(self, engine: Engine, row_bytes: int) -> None:
        layout = Layout(representation="penultimate", width=1, codec="bytes", row_bytes=row_bytes, model="ab12")
        payload = np.random.default_rng(0).integers(0, 256, (50, row_bytes)).astype(np.uint8)
        key, at = np.arange(150).reshape(50, 3), np.arange(50)
        engine.put(FM, layout, key=key, computed_at=at, history_end=at, payload=payload)
        for _ in range(2):
            rows = engine.get(FM, key[::-1])
            assert rows.found.all()
            np.testing.assert_array_equal(rows.payload, payload[::-1])
            engine.commit(FM)

    def test_many_rows_in_many_puts(self, engine: Engine) -> None:
        random = np.random.default_rng(1)
        key = random.permutation(np.arange(2_000))[:, None] * np.array([7, 1, -3])
        at = random.integers(1, 1_000, 2_000)
        payload = random.integers(0, 256, (2_000, 4)).astype(np.uint8)
        for start in range(0, 2_000, 250):
            part = slice(start, start + 250)
            engine.put(FM, LAYOUT, key=key[part], computed_at=at[part], history_end=at[part] - 5, payload=payload[part])
            if start % 500:
                engine.commit(FM)
        wanted = random.integers(0, 2_000, 500)
        rows = engine.get(FM, np.concatenate([key[wanted], key[wanted] + 1]))
        np.testing.assert_array_equal(rows.found, [True] * 500 + [False] * 500)
        np.testing.assert_array_equal(rows.computed_at[:500], at[wanted])
        np.testing.assert_array_equal(rows.history_end[:500], at[wanted] - 5)
        np.testing.assert_array_equal(rows.payload[:500], payload[wanted])

    def test_what_was_put_and_what_was_read_belong_to_the_caller(self, engine: Engine) -> None:
        key, at, payload = keys(A), np.array([10]), payload_of(1)
        engine.put(FM, LAYOUT, key=key, computed_at=at, history_end=at - 1, payload=payload)
        key[:], at[:], payload[:] = 9, 9, 9
        for _ in range(2):
            rows = engine.get(FM, keys(A))
            assert values(rows) == [(10, 9, 1)]
            rows.payload[:], rows.computed_at[:], rows.history_end[:] = 7, 7, 7
            assert get(engine, A) == [(10, 9, 1)]
            engine.commit(FM)

    def test_arrays_need_not_lie_in_one_piece(self, engine: Engine) -> None:
        wide = np.array([[[0, 1, 2], [5, 5, 5]], [[0, 1, 3], [5, 5, 5]]])
        at = np.array([10, 0, 20, 0])[::2]
        engine.put(FM, LAYOUT, key=wide[:, 0], computed_at=at, history_end=at - 1, payload=payload_of(1, 0, 2, 0)[::2])
        assert values(engine.get(FM, wide[::-1, 0])) == [(20, 19, 2), (10, 9, 1)]
        assert values(engine.get(FM, keys(B).astype(np.uint16))) == [(20, 19, 2)]


class TestTime:
    def test_greatest_computed_at_is_read_whatever_was_put_last(self, engine: Engine) -> None:
        """A clock that was set back does not hide what it computed before."""
        put(engine, (A, 20, 1))
        engine.commit(FM)
        put(engine, (A, 10, 2))
        for _ in range(2):
            assert get(engine, A) == [(20, 19, 1)]
            assert get(engine, A, as_of=19) == [(10, 9, 2)]
            engine.commit(FM)

    def test_as_of_is_inclusive_and_the_row_before_the_latest_is_kept(self, engine: Engine) -> None:
        for at in (10, 20, 30):
            put(engine, (A, at, at))
            engine.commit(FM)
        assert get(engine, A) == [(30, 29, 30)]
        assert get(engine, A, as_of=30) == [(30, 29, 30)]
        assert get(engine, A, as_of=29) == get(engine, A, as_of=20) == [(20, 19, 20)]
        assert get(engine, A, as_of=15) in ([None], [(10, 9, 10)])
        assert get(engine, A, as_of=9) == [None]

    def test_as_of_is_of_each_key_alone(self, engine: Engine) -> None:
        put(engine, (A, 10, 1), (B, 20, 2), (A, 30, 3), (C, 40, 4))
        for _ in range(2):
            assert get(engine, A, B, C, A, as_of=25) == [(10, 9, 1), (20, 19, 2), None, (10, 9, 1)]
            engine.commit(FM)

    def test_times_before_1970_are_times(self, engine: Engine) -> None:
        put(engine, (A, -10, 1), (A, -20, 2))
        engine.commit(FM)
        assert get(engine, A) == [(-10, -11, 1)]
        assert get(engine, A, as_of=-11) == [(-20, -21, 2)]
        assert get(engine, A, as_of=-21) == [None]

    def test_same_time_replaces(self, engine: Engine) -> None:
        put(engine, (A, 10, 1), (A, 10, 2), (B, 10, 3), (A, 10, 4))
        assert get(engine, A, B) == [(10, 9, 4), (10, 9, 3)]
        put(engine, (A, 10, 5))
        assert get(engine, A, B) == [(10, 9, 5), (10, 9, 3)]
        engine.commit(FM)
        assert get(engine, A, B) == [(10, 9, 5), (10, 9, 3)]
        put(engine, (A, 10, 6))
        for _ in range(2):
            assert get(engine, A, B) == [(10, 9, 6), (10, 9, 3)]
            assert get(engine, A, as_of=9) == [None]
            engine.commit(FM)

    def test_replaced_rows_do_not_push_out_the_one_before(self, engine: Engine) -> None:
        put(engine, (A, 10, 1), (A, 20, 2))
        for byte in range(3, 12):
            put(engine, (A, 20, byte))
            engine.commit(FM)
        assert get(engine, A) == [(20, 19, 11)]
        assert get(engine, A, as_of=19) == [(10, 9, 1)]

    def test_replaced_row_never_comes_back(self, engine: Engine) -> None:
        put(engine, (A, 10, 1))
        engine.commit(FM)
        put(engine, (A, 10, 2), (A, 20, 3), (A, 30, 4))
        engine.commit(FM)
        engine.collect()
        assert get(engine, A, as_of=10) in ([None], [(10, 9, 2)])


class TestLayout:
    @pytest.mark.parametrize(
        "other", [{"representation": "sequence"}, {"width": 4}, {"codec": "int8"}, {"row_bytes": 8}, {"model": "cd34"}]
    )
    def test_first_put_fixes_it(self, engine: Engine, other: dict[str, Any]) -> None:
        put(engine, (A, 10, 1))
        for _ in range(2):
            with pytest.raises(StoreError, match="one layout"):
                put(engine, (A, 20, 2), layout=Layout(**LAYOUT.to_json() | other))
            assert engine.layout(FM) == LAYOUT
            assert get(engine, A) == [(10, 9, 1)]
            engine.commit(FM)

    @pytest.mark.parametrize("name", ["key", "computed_at", "history_end"])
    @pytest.mark.parametrize("value", [np.array([1.5]), np.array([np.nan]), np.array([2**63], np.uint64)])
    def test_keys_and_times_that_are_no_integers_of_64_bits_are_refused(
        self, engine: Engine, name: str, value: np.ndarray
    ) -> None:
        arrays = {
            "key": np.array([A]),
            "computed_at": np.array([10]),
            "history_end": np.array([9]),
            "payload": np.zeros((1, 4), np.uint8),
        }
        arrays[name] = np.broadcast_to(value, arrays[name].shape)
        with pytest.raises(StoreError, match="no integers of 64 bits"):
            engine.put(FM, LAYOUT, **arrays)
        with pytest.raises(StoreError, match="needed are integers"):
            engine.get(FM, np.broadcast_to(value, (1, 3)))
        assert engine.snapshots() == []

    def test_shapes_that_differ_are_refused_and_leave_nothing(self, engine: Engine) -> None:
        good = {"key": keys(A, B), "computed_at": np.array([1, 2]), "history_end": np.array([0, 1])}
        for bad in (
            {"key": keys(A)},
            {"key": np.zeros((2, 2), np.int64)},
            {"computed_at": np.array([1])},
            {"history_end": np.array([[1, 2]])},
            {"payload": payload_of(1)},
            {"payload": payload_of(1, 2, row_bytes=5)},
            {"payload": payload_of(1, 2).astype(np.int64)},
            {"payload": payload_of(1, 2).view(np.float16)},
        ):
            with pytest.raises(StoreError, match="shapes"):
                engine.put(FM, LAYOUT, **({"payload": payload_of(1, 2)} | good | bad))
        engine.commit(FM)
        assert engine.snapshots() == []

    @pytest.mark.parametrize("key", [np.zeros((2, 2), np.int64), np.zeros(3, np.int64), np.zeros((1, 3)), [["a"] * 3]])
    def test_keys_that_are_not_three_integers_are_refused(self, engine: Engine, key: Any) -> None:
        put(engine, (A, 10, 1))
        with pytest.raises(StoreError, match="needed are integers"):
            engine.get(FM, key)


class TestSnapshots:
    def test_never_mix(self, engine: Engine) -> None:
        wide = Layout(representation="penultimate", width=3, codec="fp16", row_bytes=6, model="ab12")
        put(engine, (A, 10, 1), (B, 10, 2))
        put(engine, (A, 10, 3), snapshot=OLD, layout=wide)
        for _ in range(2):
            assert get(engine, A, B) == [(10, 9, 1), (10, 9, 2)]
            assert get(engine, A, B, snapshot=OLD) == [(10, 9, 3), None]
            assert (engine.layout(FM), engine.layout(OLD)) == (LAYOUT, wide)
            engine.commit(FM)
            engine.commit(OLD)

    def test_are_listed_by_lineage_and_version(self, engine: Engine) -> None:
        names = ["B@0001", "FM@0002", "FM@0010", "FM@100000"]
        for name in reversed(names):
            put(engine, (A, 10, 1), snapshot=name)
            engine.commit(name)
        assert engine.snapshots() == names

    def test_stats(self, engine: Engine) -> None:
        none = engine.stats(FM)
        assert (none.rows, none.bytes, none.segments) == (0, 0, 0)
        put(engine, (A, 10, 1), (B, 10, 2), (C, 10, 3))
        for _ in range(2):
            some = engine.stats(FM)
            assert some.rows == 3 and some.bytes >= 12 and some.segments >= 1
            engine.commit(FM)
        put(engine, (A, 20, 1))
        engine.commit(FM)
        assert engine.stats(FM).rows == 4
        assert engine.stats(OLD).rows == 0

    @pytest.mark.parametrize("name", HOSTILE)
    def test_hostile_names_are_refused(self, engine: Engine, name: str) -> None:
        for call in (
            lambda: put(engine, (A, 10, 1), snapshot=name),
            lambda: engine.commit(name),
            lambda: engine.get(name, keys(A)),
            lambda: engine.layout(name),
            lambda: engine.stats(name),
            lambda: engine.drop(name),
            lambda: engine.move("FM/latest", expected=None, to=name),
        ):
            with pytest.raises(UserError, match="LINEAGE@NNNN"):
                call()
        assert engine.snapshots() == [] and engine.pointers() == {}


class TestDrop:
    def test_forgets_at_once(self, engine: Engine) -> None:
        put(engine, (A, 10, 1))
        put(engine, (A, 10, 2), snapshot=OLD)
        engine.commit(FM)
        engine.commit(OLD)
        engine.drop(FM)
        for _ in range(2):
            assert engine.get(FM, keys(A)).payload.shape == (1, 0)
            assert engine.snapshots() == [OLD] and engine.layout(FM) is None and engine.stats(FM).rows == 0
            assert get(engine, A, snapshot=OLD) == [(10, 9, 2)]
            assert engine.collect() >= 0
        assert engine.verify() == []

    def test_rows_not_committed_go_too(self, engine: Engine) -> None:
        put(engine, (A, 10, 1))
        engine.drop(FM)
        engine.commit(FM)
        assert engine.snapshots() == [] and get(engine, A) == [None]
        put(engine, (A, 10, 1))
        engine.commit(FM)
        put(engine, (B, 10, 2))
        engine.drop(FM)
        engine.commit(FM)
        assert engine.snapshots() == [] and get(engine, A, B) == [None, None]

    def test_gives_way_to_another_layout_and_no_old_row_comes_back(self, engine: Engine) -> None:
        put(engine, (A, 10, 1), (B, 10, 1))
        engine.commit(FM)
        engine.drop(FM)
        other = Layout(representation="penultimate", width=4, codec="fp16", row_bytes=8, model="ab12")
        put(engine, (A, 5, 2), layout=other)
        engine.commit(FM)
        engine.collect()
        assert engine.layout(FM) == other
        assert get(engine, A, B) == [(5, 4, 2), None]

    def test_refused_without_rows(self, engine: Engine) -> None:
        with pytest.raises(StoreError, match="no rows"):
            engine.drop(FM)

    def test_refused_while_a_pointer_names_it(self, engine: Engine) -> None:
        put(engine, (A, 10, 1))
        engine.commit(FM)
        engine.move("FM/stable", expected=None, to=FM)
        with pytest.raises(StoreError, match="FM/stable points to it"):
            engine.drop(FM)
        assert get(engine, A) == [(10, 9, 1)]
        engine.move("FM/stable", expected=FM, to=None)
        engine.drop(FM)
        assert engine.snapshots() == []

    def test_collect_keeps_everything_that_is_read(self, engine: Engine) -> None:
        for at in (10, 20):
            put(engine, (A, at, at), (B, 10, at))
            engine.commit(FM)
        assert engine.collect() >= 0
        assert get(engine, A, B) == [(20, 19, 20), (10, 9, 20)]
        assert get(engine, A, as_of=19) == [(10, 9, 10)]
        assert engine.collect() == 0


class TestPointers:
    @pytest.fixture(autouse=True)
    def _two_snapshots(self, engine: Engine) -> None:
        for name in (OLD, FM):
            put(engine, (A, 10, 1), snapshot=name)
            engine.commit(name)

    def test_move_from_what_is_expected(self, engine: Engine) -> None:
        assert engine.pointers() == {}
        engine.move("FM/latest", expected=None, to=OLD)
        engine.move("FM/stable", expected=None, to=OLD)
        engine.move("FM/latest", expected=OLD, to=FM)
        assert engine.pointers() == {"FM/latest": FM, "FM/stable": OLD}
        engine.move("FM/stable", expected=OLD, to=None)
        engine.move("FM/latest", expected=FM, to=FM)
        assert engine.pointers() == {"FM/latest": FM}

    @pytest.mark.parametrize("expected", [FM, None])
    @pytest.mark.parametrize("to", [FM, OLD, None])
    def test_loser_is_told(self, engine: Engine, expected: str | None, to: str | None) -> None:
        engine.move("FM/latest", expected=None, to=OLD)
        with pytest.raises(ConflictError, match=f"FM/latest points to {OLD}"):
            engine.move("FM/latest", expected=expected, to=to)
        with pytest.raises(ConflictError, match="points to nothing"):
            engine.move("FM/stable", expected=OLD, to=to)
        assert engine.pointers() == {"FM/latest": OLD}

    def test_removing_what_is_not_there_is_nothing(self, engine: Engine) -> None:
        engine.move("FM/latest", expected=None, to=None)
        assert engine.pointers() == {}

    def test_needs_rows(self, engine: Engine) -> None:
        with pytest.raises(StoreError, match="has no rows"):
            engine.move("FM/latest", expected=None, to="FM@0003")
        assert engine.pointers() == {}

    @pytest.mark.parametrize(
        "name", ["latest", "FM", "../x", "FM/../x", "/latest", "FM/", "FM/a/b", "FM/ä", "", "FM/a\n"]
    )
    def test_hostile_names_are_refused(self, engine: Engine, name: str) -> None:
        with pytest.raises(StoreError, match="LINEAGE/CHANNEL"):
            engine.move(name, expected=None, to=FM)
        assert engine.pointers() == {}

    def test_what_is_returned_belongs_to_the_caller(self, engine: Engine) -> None:
        engine.pointers()["FM/latest"] = FM
        assert engine.pointers() == {}

    def test_of_several_movers_one_wins(self, shared: Any, engine: Engine) -> None:
        names = [f"FM@{number:04d}" for number in range(1, 7)]
        for name in names[2:]:
            put(engine, (A, 10, 1), snapshot=name)
            engine.commit(name)
        movers = [shared.open() for _ in names]
        for _ in range(5):
            with ThreadPoolExecutor(len(names)) as pool:
                won = [name for name in pool.map(partial(moves, expected=None), movers, names) if name]
            assert won == [engine.pointers()["FM/latest"]]
            engine.move("FM/latest", expected=won[0], to=None)


def moves(engine: Engine, to: str, *, expected: str | None) -> str | None:
    """``to`` if FM/latest moved there."""
    try:
        engine.move("FM/latest", expected=expected, to=to)
    except ConflictError:
        return None
    return to


class TestOthers:
    def test_see_what_was_committed(self, shared: Any) -> None:
        writer, reader = shared.open(), shared.open()
        assert get(reader, A) == [None]
        put(writer, (A, 10, 1))
        writer.commit(FM)
        assert get(reader, A) == [(10, 9, 1)]
        assert (reader.layout(FM), reader.snapshots()) == (LAYOUT, [FM])
        put(writer, (A, 20, 2), (B, 20, 3))
        writer.commit(FM)
        assert get(reader, A, B) == [(20, 19, 2), (20, 19, 3)]
        writer.collect()
        assert get(reader, A, B) == [(20, 19, 2), (20, 19, 3)]
        writer.move("FM/latest", expected=None, to=FM)
        assert reader.pointers() == {"FM/latest": FM}
        writer.move("FM/latest", expected=FM, to=None)
        writer.drop(FM)
        assert get(reader, A, B) == [None, None] and reader.snapshots() == []

    def test_writers_do_not_lose_each_others_rows(self, shared: Any) -> None:
        def write(number: int) -> None:
            engine = shared.open()
            for turn in range(4):
                put(engine, ((number, turn, 0), 10, number), ((99, 99, 99), number * 4 + turn, 1))
                engine.commit(FM)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        everything = [(number, turn, 0) for number in range(4) for turn in range(4)]
        assert get(shared.open(), *everything) == [(10, 9, number) for number in range(4) for _ in range(4)]
        assert get(shared.open(), (99, 99, 99)) == [(15, 14, 1)]

    def test_layout_of_the_first_to_commit_holds(self, shared: Any) -> None:
        first, second = shared.open(), shared.open()
        other = Layout(representation="penultimate", width=4, codec="fp16", row_bytes=8, model="ab12")
        put(first, (A, 10, 1))
        first.commit(FM)
        with pytest.raises(StoreError, match="one layout"):
            put(second, (A, 20, 2), layout=other)
        assert get(second, A) == [(10, 9, 1)]

    def test_reopening(self, persistent: Any) -> None:
        engine = persistent.open()
        put(engine, (A, 10, 1))
        engine.commit(FM)
        put(engine, (A, 20, 2))
        engine.commit(FM)
        put(engine, (B, 10, 3), snapshot=OLD)
        engine.commit(OLD)
        engine.move("FM/latest", expected=None, to=FM)
        engine.drop(OLD)
        engine.close()
        again = persistent.open()
        assert (again.snapshots(), again.layout(FM), again.stats(FM).rows) == ([FM], LAYOUT, 2)
        assert get(again, A) == [(20, 19, 2)] and get(again, A, as_of=19) == [(10, 9, 1)]
        assert again.pointers() == {"FM/latest": FM}
        assert again.verify() == []
