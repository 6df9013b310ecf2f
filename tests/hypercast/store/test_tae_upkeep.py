"""No damaged byte is served, left-overs go, and a writer killed at any step leaves whole segments or none."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypercast.errors import RegistryError, StoreError
from hypercast.store import segment as segments
from hypercast.store.segment import Segment
from hypercast.store.tae_log import TaeLog
from streaming import files
from tests.hypercast.store.tae_world import DAY, WATERMARK, World, publish


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def anew(world: World) -> TaeLog:
    """The log as another process finds it."""
    return TaeLog(world.log.root, config=world.log.config)


def left_overs(world: World) -> list[Path]:
    return [
        path
        for path in (world.log.root / "segments").glob("*/*")
        if path.name[0] == "." or not path.with_suffix(".json").exists()
    ]


@pytest.mark.parametrize("suffix", [".json", ".arrow"])
def test_a_flipped_bit_anywhere_is_found_and_never_served(world: World, suffix: str) -> None:
    world.write()
    intact = world.write(window=13)
    path = intact.path.with_suffix(suffix)
    data = path.read_bytes()
    random = np.random.default_rng(0)
    places = range(len(data)) if suffix == ".json" else random.permutation(len(data))[:300]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        (damage,) = world.log.verify()
        assert damage.where == str(intact.manifest_path) and str(path) in damage.what
        assert str(intact.manifest_path) in damage.remedy
        world.log = anew(world)
        with pytest.raises(StoreError, match=str(path)):
            world.read(window=13)
    assert world.read().counts()["MISS"] == 0  # the other segment is well
    path.write_bytes(data)
    assert world.log.verify() == []
    assert world.read(window=13).counts()["MISS"] == 0


def test_a_manifest_that_changes_under_a_reader_is_seen(world: World) -> None:
    segment = world.write()
    world.read()
    other = Segment(path=segment.path, sha256="0" * 64, facts=segment.facts)
    segment.manifest_path.write_text(other.manifest())
    with pytest.raises(StoreError, match="SHA-256 differs"):
        world.read()


def test_missing_files_and_files_of_another_name_are_damage(world: World) -> None:
    first, second = world.write(), world.write(window=13)
    first.path.unlink()
    assert [damage.where for damage in world.log.verify()] == [str(first.manifest_path)]
    for suffix in (".json", ".arrow"):
        shutil.copy(second.path.with_suffix(suffix), first.path.with_suffix(suffix))
    (damage,) = world.log.verify()
    assert "it is that of FM@0001, window 13" in damage.what
    with pytest.raises(StoreError, match="it is that of FM@0001, window 13"):
        world.read()


def test_an_empty_log_is_well(world: World) -> None:
    assert world.log.verify() == []
    assert world.log.collect() == 0
    assert world.log.prune("FM", keep=[]) == 0


def test_what_killed_writers_left_is_collected_and_nothing_else(world: World) -> None:
    segment = world.write()
    folder = segment.path.parent
    (folder / ".window=00014.arrow.partial").write_bytes(b"half")
    (folder / "window=00015.arrow").write_bytes(b"without a manifest")
    (folder / "notes.txt").write_bytes(b"a person's")
    (folder.parent / "FM@0009").mkdir()
    assert world.log.collect() == len(b"half") + len(b"without a manifest")
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"window=00012.arrow", "window=00012.json", "notes.txt"}
    assert not (folder.parent / "FM@0009").exists()
    assert world.read().counts()["MISS"] == 0
    assert world.log.collect() == 0


def test_the_next_writer_removes_what_a_killed_one_left(world: World) -> None:
    left = world.write().path.with_name(".window=00014.arrow.partial")
    for change in (lambda: world.write(window=13), lambda: world.log.delete("FM@0001", 13)):
        left.write_bytes(b"half")
        change()
        assert left_overs(world) == []


def test_pruning_keeps_the_snapshots_that_are_named(world: World) -> None:
    newer = publish(world.log.root, WATERMARK + DAY)
    stranger = publish(world.log.root, lineage="Other")
    sizes = {}
    for snapshot in (world.snapshot, newer, stranger):
        written = world.write(world.table(snapshot), snapshot=snapshot)
        sizes[snapshot.name] = sum(path.stat().st_size for path in (written.path, written.manifest_path))
    assert world.log.prune("FM", keep=["FM@0002"]) == sizes["FM@0001"]
    assert [segment.snapshot for segment in world.log.segments()] == ["FM@0002", "Other@0001"]
    assert not (world.log.root / "segments" / "FM@0001").exists()
    for wrong, error in (("FM@2", RegistryError), ("Other@0001", StoreError)):
        with pytest.raises(error, match=wrong):
            world.log.prune("FM", keep=[wrong])
    assert len(world.log.segments()) == 2


STEPS = [
    (os, "replace"),
    (files, "fsync_file"),
    (files, "fsync_directory"),
    (segments, "_write_arrow"),
    (Path, "mkdir"),
    (Path, "unlink"),
    (Path, "rmdir"),
]


def killed_before(step: int, action: Callable[[], object]) -> bool:
    """Run ``action`` in a fork that is killed before that many file operations; False if it came to its end."""
    child = os.fork()
    if child == 0:
        done = 0

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                nonlocal done
                if done == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                done += 1
                return real(*args, **kwargs)

            return wrapped

        for owner, name in STEPS:
            setattr(owner, name, counted(getattr(owner, name)))
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_killed_at_any_step_of_writing(world: World) -> None:
    world.write()
    step = 0
    while killed_before(step, lambda: world.write(window=13)):
        world.log = anew(world)
        assert world.log.verify() == []
        assert world.read().counts()["MISS"] == 0
        assert world.read(window=13).counts()["MISS"] in (0, 6)
        world.log.collect()
        assert left_overs(world) == []
        if world.log.find("FM@0001", 13):
            world.log.delete("FM@0001", 13)
        step += 1
    assert step >= 8
    assert world.read(window=13).counts()["MISS"] == 0
    assert world.write(window=13) == world.log.segment("FM@0001", 13)


def test_killed_at_any_step_a_writer_is_taken_over_from(world: World) -> None:
    """Nothing is collected between a kill and the next attempt."""
    for step in range(20):
        killed_before(step, lambda: world.write())
        assert anew(world).verify() == []
        written = world.write()
        assert left_overs(world) == []
        written.verify()
        assert anew(world).segments() == [written]
        world.log.delete("FM@0001", 12)


def test_killed_at_any_step_of_deleting_and_pruning(world: World) -> None:
    newer = publish(world.log.root, WATERMARK + DAY)
    for action in (
        lambda: world.log.delete("FM@0001", 12),
        lambda: world.log.prune("FM", keep=["FM@0002"]),
    ):
        step, was_killed = 0, True
        while was_killed:
            for snapshot in (world.snapshot, newer):
                world.write(world.table(snapshot), snapshot=snapshot)
            was_killed = killed_before(step, action)
            assert anew(world).verify() == []
            names = [segment.snapshot for segment in anew(world).segments()]
            assert names in (["FM@0001", "FM@0002"], ["FM@0002"])
            anew(world).collect()
            assert left_overs(world) == []
            step += 1
        assert names == ["FM@0002"]
        assert step >= 4


def test_killed_at_any_step_of_collecting(world: World) -> None:
    segment = world.write()
    step, was_killed = 0, True
    while was_killed:
        for name in (".window=00014.arrow.partial", "window=00015.arrow", ".window=00012.json.partial"):
            (segment.path.parent / name).write_bytes(b"left")
        (segment.path.parent.parent / "FM@0009").mkdir(exist_ok=True)
        was_killed = killed_before(step, lambda: world.log.collect())
        assert anew(world).segments() == [segment]
        assert anew(world).verify() == []
        step += 1
    assert step >= 4
    assert left_overs(world) == []
    assert not (segment.path.parent.parent / "FM@0009").exists()
