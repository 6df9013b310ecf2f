"""Snapshots, layouts, pointers and collection, with several engines at once."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hypercast.errors import StoreError
from hypercast.store.engine import Layout
from hypercast.store.valkey import records, scripts
from hypercast.store.valkey.engine import ValkeyEngine
from tests.hypercast.store.valkey.cases import FM, LAYOUT, OLD, check, keys, put
from tests.hypercast.store.valkey_place import ValkeyPlace

WIDE = Layout(representation="penultimate", width=32, codec="fp16", row_bytes=64, model="ab12")

MOVER = """
import json, random, sys
from hypercast.store.engine import ConflictError
from hypercast.store.valkey import records, scripts
from hypercast.store.valkey.engine import ValkeyEngine
url, prefix, seed = sys.argv[1:]
engine, choose, won = ValkeyEngine.Config(urls=[url], prefix=prefix).build(), random.Random(seed), []
engine.pointers()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(300):
    expected = engine.pointers().get("FM/latest")
    to = choose.choice(["FM@0001", "FM@0002", None])
    try:
        engine.move("FM/latest", expected=expected, to=to)
        won.append((expected, to))
    except ConflictError:
        pass
print(json.dumps({"won": won, "torch": "torch" in sys.modules}))
"""


@pytest.fixture
def place(request: pytest.FixtureRequest) -> ValkeyPlace:
    return ValkeyPlace(request)


def test_dropped_rows_never_come_back(place: ValkeyPlace) -> None:
    engine, other = place.open(), place.open()
    put(engine, range(100))
    check(other.get(FM, keys(range(100))), range(100))
    engine.drop(FM)
    assert not other.get(FM, keys(range(100))).found.any() and other.layout(FM) is None
    put(engine, range(5), at=50)
    for reader in (engine, other):
        check(reader.get(FM, keys(range(5))), range(5), at=50)
        assert not reader.get(FM, keys(range(5, 100))).found.any()
    assert engine.collect() > 100 * LAYOUT.row_bytes
    assert engine.collect() == 0
    check(other.get(FM, keys(range(5))), range(5), at=50)


def test_a_snapshot_dropped_elsewhere_may_come_back_with_another_layout(place: ValkeyPlace) -> None:
    engine, other = place.open(), place.open()
    put(engine, range(10))
    other.drop(FM)
    put(other, range(10), layout=WIDE)
    check(engine.get(FM, keys(range(10))), range(10))
    assert engine.layout(FM) == WIDE
    with pytest.raises(StoreError, match="one layout"):
        put(engine, range(10))
    put(engine, range(10, 20), layout=WIDE)
    check(other.get(FM, keys(range(20))), range(20))


def test_a_put_to_what_others_dropped_begins_anew(place: ValkeyPlace) -> None:
    engine, other = place.open(), place.open()
    put(engine, range(10))
    other.drop(FM)
    other.collect()
    put(engine, range(10, 20))
    check(other.get(FM, keys(range(10, 20))), range(10, 20))
    assert not other.get(FM, keys(range(10))).found.any()


@pytest.mark.parametrize("first", [True, False])
def test_collecting_under_a_put_loses_nothing(place: ValkeyPlace, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    """Of a snapshot's first rows as of later ones that are dropped while they are written."""
    engine, other = place.open(), place.open()
    if not first:
        put(engine, range(3))
    write, interruptions = engine._write, iter([True, False])

    def interrupted(*arguments: Any) -> int:
        added = write(*arguments)
        if next(interruptions):
            if not first:
                other.drop(FM)
            assert other.collect() > 0
        return added

    monkeypatch.setattr(engine, "_write", interrupted)
    put(engine, range(50))
    check(other.get(FM, keys(range(50))), range(50))
    assert next(interruptions, None) is None


@pytest.mark.parametrize("twice", [False, True])
def test_a_late_writer_does_not_call_dropped_rows_back(
    place: ValkeyPlace, monkeypatch: pytest.MonkeyPatch, twice: bool
) -> None:
    """Of two that put a snapshot's first rows one ends first, and its rows are dropped.

    The other either settles afterwards, or asks twice where to write because the first answer was lost.
    """
    engine, other = place.open(), place.open()
    call, interruptions = engine._link.call, iter([True])

    def interrupted(*arguments: Any) -> Any:
        first = arguments[1] == (scripts.REGISTER if twice else scripts.SETTLE) and next(interruptions, False)
        if first and twice:
            call(*arguments)
        if first:
            put(other, range(10, 20))
            other.drop(FM)
        return call(*arguments)

    monkeypatch.setattr(engine._link, "call", interrupted)
    put(engine, range(5))
    assert next(interruptions, None) is None
    check(other.get(FM, keys(range(5))), range(5))
    assert not other.get(FM, keys(range(10, 20))).found.any()


def test_a_writer_that_is_refused_writes_elsewhere(place: ValkeyPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who collects may already have found that nobody writes where it wrote first."""
    engine, other = place.open(), place.open()
    write, generations = engine._write, list[bytes]()

    def watched(*arguments: Any) -> int:
        added = write(*arguments)
        with place.server.client() as client:
            names = set(client.scan_iter(match=place.prefix + "{}*", count=1000))
        generations.extend({records.generation_of(name) for name in names})
        if len(generations) == 1:
            other.collect()
        return added

    monkeypatch.setattr(engine, "_write", watched)
    put(engine, range(5))
    assert len(generations) == 2 and generations[0] != generations[1]


@pytest.mark.parametrize("rows", [0, 20])
def test_what_a_killed_put_reserved(place: ValkeyPlace, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Its rows may be there and count; unless nobody has rows, in which case collecting ends it."""
    engine, other = place.open(), place.open()
    put(other, range(rows))
    write = engine._write

    def killed(*arguments: Any) -> int:
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        put(engine, range(100, 107))
    assert (other.collect() > 0) == (rows == 0)
    put(other, range(30))
    assert other.stats(FM).rows == 30 + (7 if rows else 0)
    check(other.get(FM, keys(range(30))), range(30))


def test_rows_are_counted_once(place: ValkeyPlace) -> None:
    engine = place.open(batch=16)
    for at in (100, 100, 200, 50, 300):
        put(engine, range(40), at=at)
    put(engine, range(30, 60), at=300)
    assert engine.stats(FM).rows == 2 * 40 + 20
    assert place.open().stats(FM) == engine.stats(FM)


def test_prefixes_do_not_see_each_other(place: ValkeyPlace) -> None:
    engine, longer = place.open(), place.open(prefix=place.prefix + "x")
    put(engine, range(10))
    assert longer.snapshots() == [] and longer.pointers() == {}
    put(longer, range(10), at=7)
    engine.drop(FM)
    engine.collect()
    check(longer.get(FM, keys(range(10))), range(10), at=7)
    assert engine.snapshots() == [] and longer.snapshots() == [FM]


def flip(place: ValkeyPlace, change: Callable[[bytes], bytes]) -> None:
    """Change one row on the server."""
    with place.server.client() as client:
        name = next(client.scan_iter(match=place.prefix + "{}*", count=1000))
        client.set(name, change(client.get(name)))


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value[:30] + bytes([value[30] ^ 1]) + value[31:],
        lambda value: value[:-8],
        lambda value: b"",
        lambda value: value + bytes(8),
        lambda value: bytes(len(value)),
    ],
)
def test_damage_is_named_and_never_served(place: ValkeyPlace, change: Callable[[bytes], bytes]) -> None:
    engine = place.open()
    put(engine, range(30))
    put(engine, range(30), snapshot=OLD)
    assert engine.verify() == []
    flip(place, change)
    (damage,) = engine.verify()
    name = next(name for name in (FM, OLD) if name in damage.where)
    with pytest.raises(StoreError, match="is not what was put") as raised:
        engine.get(name, keys(range(30)))
    assert damage.where in str(raised.value) and damage.remedy in str(raised.value)
    check(engine.get(OLD if name == FM else FM, keys(range(30))), range(30))
    engine.drop(name)
    put(engine, range(30), snapshot=name)
    assert engine.verify() == []


def _together(processes: list[subprocess.Popen[bytes]]) -> list[bytes]:
    """What they print once they are let go."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    return [process.communicate()[0] for process in processes]


def test_of_movers_in_several_processes_one_wins_each_time(place: ValkeyPlace) -> None:
    engine = place.open()
    for snapshot in (OLD, FM):
        put(engine, range(1), snapshot=snapshot)
    movers = [
        subprocess.Popen(
            [sys.executable, "-c", MOVER, place.server.url, place.prefix, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[4],
        )
        for seed in range(3)
    ]
    for mover in movers:
        assert mover.stdout is not None and mover.stdout.readline() == b"ready\n"
    told = [json.loads(text) for text in _together(movers)]
    assert 0 < sum(len(one["won"]) for one in told) < 3 * 300
    assert not any(one["torch"] for one in told)
    # Each state was left as often as it was entered, but for the first and the last: one path of single moves.
    balance: Counter[str | None] = Counter({None: 1})
    for expected, to in (move for one in told for move in one["won"]):
        balance[expected] -= 1
        balance[to] += 1
    assert {state for state, count in balance.items() if count} == {engine.pointers().get("FM/latest")}
    assert sum(balance.values()) == 1 and min(balance.values()) >= 0


def test_a_mover_that_heard_no_answer_is_not_told_of_itself(
    place: ValkeyPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: ValkeyEngine = place.open()
    put(engine, range(1))
    call = engine._link.call

    def twice(*arguments: Any) -> Any:
        call(*arguments)
        return call(*arguments)

    monkeypatch.setattr(engine._link, "call", twice)
    engine.move("FM/latest", expected=None, to=FM)
    assert engine.pointers() == {"FM/latest": FM}
