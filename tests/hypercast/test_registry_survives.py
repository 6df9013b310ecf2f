"""A writer killed at any step, a disk that is full or read-only: readers see whole snapshots with the right bits."""

import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from hypercast.errors import RegistryError
from hypercast.objects import weights
from hypercast.registry import Registry
from streaming import files

FORK = get_context("fork")
KEEP = 2
STEPS = ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink")


@pytest.fixture(autouse=True)
def _small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGE", 1024)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a killed process loses nothing that it has written
    torch.set_num_threads(1)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Three snapshots in a lineage, one of them stable."""
    registry = Registry(tmp_path / "registry")
    for _ in range(3):
        publish(registry)
    registry.move("FM", "stable", expected=None, to="FM@0002")
    return registry


def state(watermark: int) -> dict[str, Tensor]:
    """The weights that belong to a watermark: a table that changes by a row, and a bias that changes as a whole."""
    table = torch.zeros(64, 8)
    for row in range(watermark):
        table[row % 64] = float(row)
    return {"table": table, "bias": torch.full((4,), float(watermark)), "frozen": torch.ones(40, 8)}


def publish(registry: Registry) -> None:
    """The next watermark, by rows on the newest."""
    known = registry.list("FM")
    watermark = known[-1].watermark + 1 if known else 1
    registry.publish(
        lineage="FM",
        tensors=state(watermark),
        watermark=watermark,
        schema_hash="s",
        dims={"penultimate": 4},
        dtype="float16",
        tasks=["buy"],
        metrics={},
        parent=known[-1].name if known else None,
        metadata={},
    )


def work(registry: Registry) -> None:
    """One turn of a writer: publish, move a channel and back, prune."""
    publish(registry)
    stable = registry.channel("FM", "stable").name
    registry.move("FM", "stable", expected=stable, to=registry.current("FM").name)
    registry.prune("FM", keep=KEEP)


def check_bits(registry: Registry) -> int:
    """All that can be seen is right; how many snapshots that were."""
    seen = [registry.current("FM"), registry.channel("FM", "stable"), *registry.list("FM")]
    for snapshot in seen:
        expected = state(snapshot.watermark)
        loaded = snapshot.load()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items()), snapshot.name
    return len(seen)


@contextmanager
def stopping_at(step: int, stop: Callable[[], Any]) -> Iterator[list[str]]:
    """Call ``stop`` before the call number ``step`` that changes the disk; what is written then is half written.

    Yields the names of the calls so far.
    """
    calls: list[str] = []
    patched = pytest.MonkeyPatch()

    def patch(owner: Any, name: str, half: Callable[..., Any] | None = None) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == step:
                if half is not None:
                    half(real, *args)
                stop()
            return real(*args, **kwargs)

        patched.setattr(owner, name, wrapped)

    for name in STEPS:
        patch(os, name)
    for owner, name in ((Path, "write_bytes"), (files, "_write_all")):
        patch(owner, name, half=lambda real, path, data: real(path, data[: len(data) // 2]))
    with patched.context():
        try:
            yield calls
        finally:
            patched.undo()


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def in_a_fork(action: Callable[[], Any]) -> int:
    child = FORK.Process(target=action)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


@contextmanager
def readers(root: Path, count: int) -> Iterator[None]:
    """Processes that read all the time and find nothing but right bits."""
    stop = FORK.Event()
    loaded = [FORK.Value("q", 0) for _ in range(count)]

    def read(seen: Any) -> None:
        registry = Registry(root)
        while not stop.wait(0.005):
            try:
                seen.value += check_bits(registry)
            except RegistryError as error:
                # Found by its name, and removed before it was read: that is said, and no damage.
                if "pruned meanwhile" not in str(error):
                    raise

    processes = [FORK.Process(target=read, args=(seen,)) for seen in loaded]
    for process in processes:
        process.start()
    try:
        yield
        deadline = time.monotonic() + 60
        while any(seen.value == 0 for seen in loaded) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        stop.set()
        for process in processes:
            process.join()
    assert [process.exitcode for process in processes] == [0] * count
    assert all(seen.value > 0 for seen in loaded)


def check_repaired(registry: Registry) -> None:
    """The next writer leaves nothing of what the last one left."""
    work(registry)
    needed = {registry.contents.path(digest) for each in registry.list("FM") for digest in each.weights.objects}
    assert {path for path in registry.root.glob("objects/*/*") if path.is_file()} == needed
    assert not [path for path in registry.root.rglob(".*") if path.name != ".lock"]
    assert registry.verify() == []
    assert registry.current("FM") == registry.list("FM")[-1]


def test_the_steps_have_names(registry: Registry) -> None:
    with stopping_at(0, die) as calls:
        work(registry)
    assert set(calls) == {*STEPS, "write_bytes", "_write_all"}


@pytest.mark.parametrize("stride", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_step(registry: Registry, stride: int) -> None:
    step, kills, finished = 1, 0, False
    with readers(registry.root, 2):
        while not finished:

            def writer(step: int = step) -> None:
                with stopping_at(step, die):
                    work(registry)

            before = registry.current("FM").version
            status = in_a_fork(writer)
            finished = status == 0
            assert finished or status == -signal.SIGKILL
            kills += not finished
            assert check_bits(registry) and registry.current("FM").version >= before
            assert registry.verify() == [], step
            check_repaired(registry)
            step += stride
    assert kills >= 40 // stride


@pytest.mark.slow
def test_killed_200_times_at_any_moment(registry: Registry) -> None:
    chance = random.Random(0)

    def writer() -> None:
        while True:
            work(registry)

    with readers(registry.root, 4):
        for _ in range(200):
            before = registry.list("FM")[-1].version
            child = FORK.Process(target=writer)
            child.start()
            while registry.list("FM")[-1].version < before + 1:  # it is at work
                assert child.is_alive()
            time.sleep(chance.uniform(0.0, 0.3))
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            assert check_bits(registry)
            assert registry.verify() == []
            check_repaired(registry)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_the_disk_refuses_at_every_step(registry: Registry, number: int) -> None:
    def refuse() -> NoReturn:
        raise OSError(number, os.strerror(number), "the disk")

    refusals: list[str] = []
    step, finished = 0, False
    while not finished:
        step += 1
        with stopping_at(step, refuse) as calls:
            try:
                work(registry)
                finished = len(calls) < step  # else making a folder failed that was there
            except RegistryError as error:
                refusals.append(str(error))
        assert check_bits(registry)
        assert registry.verify() == []
        assert not list(registry.root.rglob(".*.partial")) and not list(registry.root.rglob(".*.removed"))
        check_repaired(registry)
    assert len(refusals) >= 30
    expected = f"{registry.root}: cannot be written ({os.strerror(number)}"
    assert all(each.startswith(expected) and "whole and can be read" in each for each in refusals)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting a file system needs rights that we do not have")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_real_disk_full_and_then_read_only(small_disk: Path) -> None:
    registry = Registry(small_disk / "registry")
    publish(registry)
    registry.move("FM", "stable", expected=None, to="FM@0001")
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(1 << 20))
    with pytest.raises(RegistryError, match=r"cannot be written \(No space left on device.*Make room"):
        publish(registry)
    assert check_bits(registry) == 3 and registry.verify() == []
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for change in (
        lambda: publish(registry),
        lambda: registry.prune("FM", keep=1),
        lambda: registry.pin("home", lineage="FM"),
        lambda: registry.move("FM", "stable", expected="FM@0001", to=None),
    ):
        with pytest.raises(RegistryError, match=r"cannot be written \(Read-only file system"):
            change()
    assert check_bits(registry) == 3 and registry.verify() == []
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    check_repaired(registry)
