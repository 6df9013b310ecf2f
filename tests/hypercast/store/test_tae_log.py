"""What the log gives is what was published, as of no later than the request, and nothing else."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypercast.codec import arrow, rows
from hypercast.errors import RegistryError, StoreError
from hypercast.pins import Pin
from hypercast.registry import Registry
from hypercast.store.status import Status
from hypercast.store.tae_log import TaeLog
from streaming.errors import LeakageError
from tests.hypercast.store.tae_world import DAY, WATERMARK, World, publish


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("log"))
    world.write()
    return world


def test_reads_what_was_published_and_how_old_it_is(world: World) -> None:
    world.write()
    found = world.read()
    assert found.aligned
    assert found.snapshot == "FM@0001"
    assert found.vector.dtype == np.float32
    assert found.teacher_logit.dtype == np.float32
    assert found.vector[:5].tolist() == world.vector[:5].tolist()
    np.testing.assert_array_equal(found.teacher_logit[:5], np.stack([2 * world.logit, world.logit], axis=1)[:5])
    assert found.age.tolist() == [DAY, DAY, 3 * DAY, 3 * DAY, 3 * DAY, 5 * DAY]
    assert found.status.tolist() == [Status.FRESH] * 2 + [Status.STALE] * 3 + [Status.EXPIRED]
    assert found.present.tolist() == [True] * 5 + [False]
    assert not found.vector[5].any()
    assert not found.teacher_logit[5].any()
    assert found.counts() == {"FRESH": 2, "STALE": 3, "EXPIRED": 1, "MISS": 0}


def test_bounds_of_freshness_are_inclusive(world: World) -> None:
    world.time = WATERMARK + np.array([0, 2 * DAY, 2 * DAY + 1, 4 * DAY, 4 * DAY + 1, 9 * DAY])
    world.write()
    assert [Status(value).name for value in world.read().status] == [
        "FRESH",
        "FRESH",
        "STALE",
        "STALE",
        "EXPIRED",
        "EXPIRED",
    ]


@settings(max_examples=50, deadline=None)
@given(query=st.lists(st.tuples(st.sampled_from([3, 7, 8, 9]), st.integers(-1, 3)), max_size=12))
def test_the_join_equals_a_dict_lookup(written: World, query: list[tuple[int, int]]) -> None:
    world = written
    rows = {(int(r), int(c)): row for row, (r, c) in enumerate(zip(world.request_id, world.candidate_id, strict=True))}
    found = world.read(
        request_id=np.array([key[0] for key in query], np.int64),
        candidate_id=np.array([key[1] for key in query], np.int32),
        time=np.full(len(query), WATERMARK + DAY),
    )
    whole = world.read()
    for place, key in enumerate(query):
        row = rows.get(key)
        if row is None:
            assert found.status[place] == Status.MISS
            assert found.age[place] == 0
            assert not found.vector[place].any()
            assert not found.teacher_logit[place].any()
        else:
            assert found.status[place] == whole.status[row]
            assert found.age[place] == whole.age[row]
            assert found.vector[place].tolist() == whole.vector[row].tolist()
            assert found.teacher_logit[place].tolist() == whole.teacher_logit[row].tolist()


@pytest.mark.parametrize("codec", rows.NAMES)
def test_both_ways_of_reading_agree_under_every_codec(codec: str, tmp_path: Path) -> None:
    world = World(tmp_path, dtype=codec)
    world.vector += np.random.default_rng(0).normal(size=world.vector.shape).astype(np.float32)
    segment = world.write()
    assert segment.table.schema.field("penultimate").type == arrow.column_type(codec, 3)
    assert segment.facts.dtype == codec
    sequential, shuffled = world.read(), np.array([4, 2, 0, 5, 1, 3])
    joined = world.read(shuffled)
    assert (sequential.aligned, joined.aligned) == (True, False)
    encoded = rows.named(codec).encode(world.vector)
    np.testing.assert_array_equal(sequential.vector[:5], rows.named(codec).decode(encoded, 3)[:5])
    for name in ("vector", "teacher_logit", "status", "age"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(sequential, name)[shuffled])


@pytest.mark.parametrize("codec", ["float32", "int4"])
def test_rows_of_other_requests_are_not_joined(codec: str, tmp_path: Path) -> None:
    world = World(tmp_path, dtype=codec)
    world.write()
    assert world.read(requests_digest=None).counts()["MISS"] == 0
    for part in (slice(None), slice(2, 4), slice(0, 0)):
        with pytest.raises(StoreError, match=r"published for requests with SHA-256 d, .* have e.* publish window 12"):
            world.read(part, requests_digest="e")


def test_single_precision_in_sequence_is_a_view_of_the_file(tmp_path: Path) -> None:
    world = World(tmp_path, dtype="float32")
    world.time[:] = WATERMARK + DAY
    world.write()
    first, second = world.read(), world.read()
    assert np.shares_memory(first.vector, second.vector)
    assert not first.vector.flags.writeable


def test_nothing_is_published_with_knowledge_of_the_future(world: World) -> None:
    world.time[4] = WATERMARK - 1
    honest = world.table()
    dishonest = honest.set_column(honest.schema.get_field_index("age"), "age", pa.array([0] * 6))
    for table in (honest, dishonest):
        with pytest.raises(LeakageError, match=r"row 4 \(request_id 3, candidate_id 1\).*law L3"):
            world.write(table)
    assert world.log.segments() == []


def test_nothing_is_read_with_knowledge_of_the_future(world: World) -> None:
    world.write()
    early = world.time.copy()
    early[2] = WATERMARK - 1
    with pytest.raises(LeakageError, match=r"row 2 .*law L3"):
        world.read(time=early)


def test_no_segment_means_misses_that_are_counted(world: World) -> None:
    found = world.read()
    assert found.counts() == {"FRESH": 0, "STALE": 0, "EXPIRED": 0, "MISS": 6}
    assert found.snapshot is None
    assert found.vector.shape == (6, 3)
    assert not found.vector.any()
    assert found.teacher_logit.shape == (6, 2)
    assert not found.teacher_logit.any()
    world.write()
    assert world.read(window=13).counts()["MISS"] == 6
    assert world.read(pin=Pin(expert="home", lineage="FM", version=2)).counts()["MISS"] == 6
    assert world.read(pin=Pin(expert="home", lineage="F")).counts()["MISS"] == 6


def test_deleting_moves_the_counters(world: World) -> None:
    world.write()
    assert world.read().counts()["MISS"] == 0
    world.log.delete("FM@0001", 12)
    assert world.read().counts()["MISS"] == 6
    world.write(world.table().take([0, 2, 5]))
    found = world.read()
    assert found.counts() == {"FRESH": 1, "STALE": 1, "EXPIRED": 1, "MISS": 3}
    assert found.status[[1, 3, 4]].tolist() == [Status.MISS] * 3
    assert not found.vector[[1, 3, 4]].any()
    with pytest.raises(StoreError, match=r"FM@0001 has not published window 11; .*\[12\]"):
        world.log.delete("FM@0001", 11)


def test_flipped_vectors_are_what_is_read(world: World) -> None:
    world.write()
    before = world.read()
    world.log.delete("FM@0001", 12)
    world.write(world.table(representations={"penultimate": -world.vector}))
    np.testing.assert_array_equal(world.read().vector, -before.vector)


def test_writing_is_idempotent_and_never_overwrites(world: World) -> None:
    first = world.write()
    again = pa.concat_tables([world.table().slice(0, 2), world.table().slice(2)])  # other chunks, same content
    assert world.write(again) == first
    for change in (
        lambda: world.write(world.table(representations={"penultimate": -world.vector})),
        lambda: world.write(requests_digest="e"),
        lambda: world.write(world.table().slice(1)),
    ):
        with pytest.raises(StoreError, match="FM@0001 has published window 12 already"):
            change()
    assert [(segment.snapshot, segment.window) for segment in world.log.segments()] == [("FM@0001", 12)]
    assert world.read().counts()["MISS"] == 0


def test_a_following_pin_reads_the_newest_version_a_fixed_one_its_own(world: World) -> None:
    world.write()
    newer = publish(world.log.root, WATERMARK + DAY)
    world.write(world.table(newer, representations={"penultimate": -world.vector}), snapshot=newer)
    fixed = Registry(world.log.root).pin("home", lineage="FM", version=1)
    assert world.read().snapshot == "FM@0002"
    assert world.read(pin=fixed).snapshot == "FM@0001"
    np.testing.assert_array_equal(world.read().vector[:2], -world.read(pin=fixed).vector[:2])


def test_vectors_of_another_width_dtype_or_name_are_refused(world: World) -> None:
    world.write()
    for changed, error, message in [
        ({"width": 4}, StoreError, "width 3, but expert 'home' was built for 4"),
        ({"pin": Pin(expert="home", lineage="FM", dims={"penultimate": 9})}, RegistryError, "width is 3, not 9"),
        ({"pin": Pin(expert="home", lineage="FM", dtype="float32")}, RegistryError, "dtype is float16, not float32"),
        ({"representation": "sequence"}, StoreError, r"no representation 'sequence'; there are \['penultimate'\]"),
        (
            {"representation": "penultimate", "pin": Pin(expert="home", lineage="FM", dtype="int8")},
            RegistryError,
            "int8",
        ),
        ({"tasks": ["like"]}, StoreError, r"task 'like'; there are \['buy', 'click'\]"),
    ]:
        with pytest.raises(error, match=message):
            world.read(**changed)


def test_tables_that_do_not_fit_are_refused(world: World) -> None:
    table = world.table()
    wide = {"penultimate": np.ones((6, 4), np.float32)}
    stranger = publish(world.log.root, lineage="Other")
    for bad, message in [
        (table.drop_columns("item_id"), "column 'item_id' .* is missing"),
        (table.drop_columns("penultimate"), "no column of vectors"),
        (table.append_column("tower", table["penultimate"]), "'tower' is no representation of FM@0001"),
        (table.set_column(0, "request_id", table["request_id"].cast(pa.int32())), "'request_id' has type int32"),
        (world.table(representations=wide), "'penultimate' has type .*4.*, not .*3.* as FM@0001 declares"),
        (world.table(stranger), "names .*Other@0001"),
        (pa.concat_tables([table, table.slice(5)]), "row 6 repeats request_id 9, candidate_id 0"),
        (world.table(teacher_logits={"buy": np.full(6, np.nan)}), "row 0 .* not finite"),
        (table.set_column(3, "time", pa.nulls(6, table["time"].type)), "'time' holds nulls"),
    ]:
        with pytest.raises(StoreError, match=message):
            world.write(bad)
    assert world.log.segments() == []


def test_empty_windows_and_empty_reads(world: World) -> None:
    nothing = slice(0, 0)
    world.write(world.table().slice(0, 0))
    assert world.read(nothing).counts() == {"FRESH": 0, "STALE": 0, "EXPIRED": 0, "MISS": 0}
    assert world.read().counts()["MISS"] == 6
    world.log.delete("FM@0001", 12)
    world.write()
    assert world.read(nothing).vector.shape == (0, 3)


def test_damage_is_found_and_the_file_named(world: World) -> None:
    segment = world.write()
    data = bytearray(segment.path.read_bytes())
    data[len(data) // 2] ^= 1
    segment.path.write_bytes(data)
    with pytest.raises(StoreError, match=str(segment.path)):
        world.read()
    segment.manifest_path.write_text("{}")
    with pytest.raises(StoreError, match=str(segment.manifest_path)):
        world.read()


def test_a_segment_without_its_manifest_is_invisible_and_rewritten(world: World) -> None:
    segment = world.write()
    segment.manifest_path.unlink()
    assert world.log.segments() == []
    assert world.read().counts()["MISS"] == 6
    assert world.write() == segment
    assert world.read().counts()["MISS"] == 0


def test_facts_travel_with_the_rows(world: World) -> None:
    segment = world.write()
    facts = json.loads(segment.table.schema.metadata[b"hypercast.segment"])
    assert facts == {
        "snapshot": "FM@0001",
        "weights_digest": world.snapshot.manifest["weights_digest"],
        "window": 12,
        "watermark": WATERMARK,
        "requests_digest": "d",
        "rows": 6,
        "representations": {"penultimate": 3},
        "dtype": "float16",
        "tasks": ["buy", "click"],
    }
    assert world.log.segment("FM@0001", 12).table.equals(segment.table)


def test_freshness_must_be_ordered() -> None:
    with pytest.raises(ValueError, match="must not be less than fresh_for"):
        TaeLog.Config(fresh_for=10, ttl=9)
