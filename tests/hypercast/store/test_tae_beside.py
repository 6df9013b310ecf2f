"""Reading the log while somebody deletes and publishes anew, and writing it to a disk that is full or read-only."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypercast.errors import StoreError
from hypercast.store import segment as segments
from hypercast.store import tae_upkeep
from hypercast.store.segment import Segment
from hypercast.store.tae_log import TaeLog
from streaming import files
from tests.hypercast.store.tae_world import DAY, WATERMARK, World, publish

MOMENTS = ["listed", "opened", "hashing", "hashed"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.time[:] = WATERMARK + DAY
    world.write()
    world.log = anew(world)
    return world


def anew(world: World) -> TaeLog:
    return TaeLog(world.log.root, config=world.log.config)


def delete(world: World) -> None:
    anew(world).delete("FM@0001", 12)


def republish(world: World) -> None:
    """The window by other requests: other vectors."""
    log = anew(world)
    log.delete("FM@0001", 12)
    table = world.table(representations={"penultimate": -world.vector})
    log.write(snapshot=world.snapshot, window=12, table=table, requests_digest="e")


def publish_the_same_again(world: World) -> None:
    log = anew(world)
    log.delete("FM@0001", 12)
    log.write(snapshot=world.snapshot, window=12, table=world.table(), requests_digest="d")


@contextmanager
def meanwhile(moment: str, change: Callable[[], None]) -> Iterator[list[str]]:
    """Make ``change`` once, at a moment of the next read; yields the moments that came."""
    came: list[str] = []
    patched = pytest.MonkeyPatch()

    def reached(now: str) -> None:
        came.append(now)
        if now == moment:
            patched.undo()
            change()

    def wrap(owner: Any, name: str, *, before: str, after: str | None = None) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            reached(before)
            result = real(*args, **kwargs)
            if after is not None:
                reached(after)
            return result

        patched.setattr(owner, name, staticmethod(wrapped) if owner is Segment else wrapped)

    wrap(Segment, "open", before="listed", after="opened")
    wrap(hashlib, "file_digest", before="hashing", after="hashed")
    try:
        yield came
    finally:
        patched.undo()


@pytest.mark.parametrize("change", [delete, republish, publish_the_same_again])
@pytest.mark.parametrize("moment", MOMENTS)
def test_what_is_read_is_what_was_asked_for_whatever_happens_meanwhile(
    world: World, moment: str, change: Callable[[World], None]
) -> None:
    refused = change is republish and moment in ("listed", "opened")
    with (
        meanwhile(moment, lambda: change(world)) as came,
        pytest.raises(StoreError, match="published for requests with SHA-256 e") if refused else nullcontext(),
    ):
        found = world.read()
        if change is delete and moment in ("listed", "opened"):
            assert found.counts()["MISS"] == 6
        else:
            assert np.array_equal(found.vector, world.vector)
    assert moment in came
    assert anew(world).verify() == []


@pytest.mark.parametrize("change", [delete, republish, publish_the_same_again])
@pytest.mark.parametrize("moment", MOMENTS)
def test_what_goes_while_it_is_verified_or_listed_is_no_damage(
    world: World, moment: str, change: Callable[[World], None]
) -> None:
    with meanwhile(moment, lambda: change(world)) as came:
        assert world.log.verify() == []
    assert moment in came
    with meanwhile("listed", lambda: delete(world) if change is not delete else None):
        assert world.log.segments() == []


def test_folders_that_go_while_they_are_listed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = tae_upkeep.snapshots(world.log.root / "segments")
    anew(world).prune("FM", keep=[])
    monkeypatch.setattr(tae_upkeep, "snapshots", lambda folder: listed)
    assert world.log.segments() == [] and world.log.verify() == []
    assert world.read().counts()["MISS"] == 6


def test_folders_and_files_of_other_names_are_none_of_ours(world: World) -> None:
    folder = world.log.root / "segments"
    for name in ("FM@backup", "FM@0001 (copy)", "FM@2"):
        (folder / name).mkdir()
        (folder / name / "window=00012.json").write_text("{}")
    (folder / "FM@0003").write_text("a person's")
    (folder / "notes").write_text("a person's")
    assert world.read().snapshot == "FM@0001"
    assert [segment.snapshot for segment in world.log.segments()] == ["FM@0001"]
    assert world.log.verify() == []


def test_columns_of_other_lengths_are_refused(world: World) -> None:
    with pytest.raises(StoreError, match=r"rows of FM@0001: columns have lengths .*'item_id': 5"):
        world.table(item_id=np.arange(5))


STEPS = [
    (os, "replace"),
    (files, "fsync_file"),
    (files, "fsync_directory"),
    (segments, "_write_arrow"),
    (Path, "mkdir"),
    (Path, "unlink"),
]


@contextmanager
def failing_at(step: int, number: int) -> Iterator[list[str]]:
    """Let the call number ``step`` that changes the disk fail with ``number``, once; yields the names of the calls."""
    calls: list[str] = []
    patched = pytest.MonkeyPatch()

    def patch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == step:
                if name == "_write_arrow":
                    args[0].write_bytes(b"half")
                raise OSError(number, os.strerror(number), str(args[0]))
            return real(*args, **kwargs)

        patched.setattr(owner, name, wrapped)

    for owner, name in STEPS:
        patch(owner, name)
    try:
        yield calls
    finally:
        patched.undo()


ACTIONS: dict[str, Callable[[World], object]] = {
    "write": lambda world: world.write(window=13),
    "delete": delete,
    "prune": lambda world: world.log.prune("FM", keep=["FM@0002"]),
    "collect": lambda world: world.log.collect(),
}


def message_of(action: Callable[[], object]) -> str | None:
    """Of the StoreError that it raises; None if it comes to its end."""
    try:
        action()
    except StoreError as error:
        return str(error)
    return None


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_told_and_nothing_half_written_stays(
    world: World, action: str, number: int
) -> None:
    newer = publish(world.log.root, WATERMARK + 1)
    folder = world.log.root / "segments"
    for step in range(1, 30):
        world.write()
        world.write(world.table(newer), snapshot=newer)
        with failing_at(step, number) as calls:
            told = message_of(lambda: ACTIONS[action](world))
        if told is None:
            assert len(calls) < step
            break
        assert f"cannot be written ({os.strerror(number)}" in told and "Make room" in told
        assert anew(world).verify() == []
        kept = {(segment.snapshot, segment.window) for segment in anew(world).segments()}
        assert ("FM@0002", 12) in kept
        assert not [path for path in folder.rglob("*.arrow") if not path.with_suffix(".json").exists()]
        assert not list(folder.rglob("*.partial"))
        if ("FM@0001", 13) in kept:
            world.log.delete("FM@0001", 13)
    assert step > 1
    assert anew(world).verify() == []


def test_other_errors_of_the_system_are_not_taken_for_a_full_disk(world: World) -> None:
    with failing_at(1, errno.EBADF), pytest.raises(OSError, match="Bad file descriptor"):
        world.write(window=13)
