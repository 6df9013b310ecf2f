"""A full disk, a folder that cannot be written, and two who write: told clearly, and nothing is lost."""

import errno
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypercast.errors import StoreError
from hypercast.store.engine import ConflictError, Layout
from hypercast.store.local import records, segment, steps, write_behind
from hypercast.store.local.engine import LocalEngine
from hypercast.store.local.manifest import NAME, SEGMENTS
from hypercast.store.local.segment import HEADER
from hypercast.store.local.steps import Step

LAYOUT = Layout(representation="penultimate", width=8, codec="bytes", row_bytes=8, model="ab12")
FM, OLD = "FM@0002", "FM@0001"
KEY = np.arange(60).reshape(20, 3)


def open_store(path: Path, **knobs: int) -> LocalEngine:
    return LocalEngine.Config(path=path, **knobs).build()


def put(store: LocalEngine, byte: int, *, snapshot: str = FM, layout: Layout = LAYOUT) -> None:
    at = np.full(20, byte)
    payload = np.full((20, layout.row_bytes), byte, np.uint8)
    store.put(snapshot, layout, key=KEY, computed_at=at, history_end=at, payload=payload)


def byte_of(store: LocalEngine, snapshot: str = FM) -> int:
    """That all rows hold; 0 if none is there."""
    rows = store.get(snapshot, KEY)
    (byte,) = np.unique(rows.payload) if rows.payload.size else (0,)
    assert rows.found.all() or not rows.found.any()
    return int(byte)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with two segments of FM@0002 (byte 2), and FM@0001 (byte 1)."""
    store = open_store(tmp_path / "store")
    for byte, snapshot in ((1, FM), (2, FM), (1, OLD)):
        put(store, byte, snapshot=snapshot)
        store.commit(snapshot)
    return tmp_path / "store"


def commit(store: LocalEngine) -> None:
    put(store, 3)
    store.commit(FM)


CALLS: dict[str, tuple[Callable[[LocalEngine], object], set[Step]]] = {
    "commit": (commit, set(Step) - {Step.FILE_REMOVED}),
    "compact": (lambda store: store.compact(FM), set(Step)),
    "collect": (lambda store: store.collect(), set(Step)),
    "move": (lambda store: store.move("FM/latest", expected=None, to=FM), {Step.LOCKED, Step.MANIFEST_WRITTEN}),
    "drop": (lambda store: store.drop(OLD), {Step.LOCKED, Step.MANIFEST_WRITTEN}),
}


@pytest.mark.parametrize(("name", "step"), [(name, step) for name in CALLS for step in sorted(CALLS[name][1])])
def test_failing_at_any_step(path: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: Step) -> None:
    number = errno.ENOSPC if step.startswith("segment") else errno.EROFS

    def fail(at: Step) -> None:
        if at == step:
            raise OSError(number, os.strerror(number))

    call, store, other = CALLS[name][0], open_store(path), open_store(path)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "reached", fail)
        with pytest.raises(StoreError, match=os.strerror(number)) as raised:
            call(store)
        assert str(path) in str(raised.value) and "still served" in str(raised.value)
        done = step in (Step.MANIFEST_MOVED, Step.FILE_REMOVED)
        assert byte_of(other) == (3 if name == "commit" and done else 2)
        assert byte_of(other, OLD) == 1
    # With room again the same store goes on: what was put is still there to be committed.
    if name == "commit":
        store.commit(FM)
        assert byte_of(open_store(path)) == byte_of(store) == 3
    elif name in ("compact", "collect"):
        call(store)
        assert store.stats(FM).segments == 1
    elif name == "drop":
        store.drop(OLD)
        assert store.snapshots() == [FM]
    else:
        call(store)
        assert store.pointers() == {"FM/latest": FM}
    store.collect()
    assert len(list((path / SEGMENTS).iterdir())) == len(store.snapshots())
    assert store.verify() == []


@pytest.mark.parametrize("step", [Step.SEGMENT_KEPT, Step.MANIFEST_BEGUN])
@pytest.mark.parametrize("swept", [False, True])
def test_bulk_is_kept_by_the_second_attempt(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: Step, swept: bool
) -> None:
    """Whether or not somebody has removed what the first one left."""

    def fail(at: Step) -> None:
        if at == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = open_store(path, bulk_bytes=1)
    put(store, 3)
    assert len(list((path / SEGMENTS).iterdir())) == 3, "a file without a name"
    with monkeypatch.context() as patch:
        patch.setattr(steps, "reached", fail)
        with pytest.raises(StoreError, match="No space left"):
            store.commit(FM)
    if swept:
        open_store(path).collect()
    assert byte_of(open_store(path)) == 2 and byte_of(store) == 3
    store.commit(FM)
    assert byte_of(open_store(path)) == byte_of(store) == 3
    assert store.verify() == []


@pytest.mark.parametrize("step", [Step.SEGMENT_BEGUN, Step.SEGMENT_ROWS, Step.SEGMENT_WRITTEN])
def test_bulk_that_does_not_fit_is_refused_by_put(path: Path, monkeypatch: pytest.MonkeyPatch, step: Step) -> None:
    def fail(at: Step) -> None:
        if at == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = open_store(path, bulk_bytes=1)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "reached", fail)
        with pytest.raises(StoreError, match="No space left"):
            put(store, 3)
    store.commit(FM)
    assert byte_of(store) == 2 and len(list((path / SEGMENTS).iterdir())) == 3
    put(store, 4)
    store.commit(FM)
    assert byte_of(store) == byte_of(open_store(path)) == 4


def test_file_system_without_unnamed_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(file: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return opened(file, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    store = open_store(path, bulk_bytes=1)
    commit(store)
    assert byte_of(store) == byte_of(open_store(path)) == 3


@pytest.mark.parametrize("at_end", [False, True])
def test_error_of_the_disk_in_the_background_is_not_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch, at_end: bool
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    # Every chunk, or only the last one.
    monkeypatch.setattr(write_behind, "EVERY_BYTES", 20 * 56 if at_end else 1)
    monkeypatch.setattr(records, "CHUNK_BYTES", 1 << 20 if at_end else 1)
    store = open_store(path, bulk_bytes=1)
    with pytest.raises(StoreError, match="Input/output error"):
        put(store, 3)
    assert byte_of(store) == 2


FULL = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from hypercast.errors import StoreError
from hypercast.store.engine import Layout
from hypercast.store.local.engine import LocalEngine

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LocalEngine.Config(path=Path(sys.argv[1])).build()
layout = Layout(representation="penultimate", width=8, codec="bytes", row_bytes=8, model="ab12")
rows = 20_000
key, at = np.arange(3 * rows).reshape(rows, 3), np.full(rows, 9)
store.put("FM@0002", layout, key=key, computed_at=at, history_end=at, payload=np.full((rows, 8), 9, np.uint8))
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
try:
    store.commit("FM@0002")
except StoreError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print([segment.stat().st_size for segment in sorted((Path(sys.argv[1]) / "segments").iterdir())][2:])
store.commit("FM@0002")
assert "torch" not in sys.modules
"""


def test_file_that_the_system_lets_grow_no_further(path: Path) -> None:
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told, left = done.stdout.splitlines()
    assert "File too large" in told and str(path) in told and "still served" in told
    assert len(left.split(",")) == 1, "the part that was written is gone again"
    assert byte_of(open_store(path)) == 9


def test_folder_that_cannot_be_written_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may only read opens no file for writing."""
    opened = os.open

    def refuse(file: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
        return opened(file, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    before = sorted(file.name for file in path.rglob("*"))
    store = open_store(path)
    assert byte_of(store) == 2 and store.verify() == [] and store.pointers() == {} and store.stats(FM).rows == 40
    assert sorted(file.name for file in path.rglob("*")) == before


def test_layout_that_no_header_can_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store, whole = open_store(tmp_path / "store"), LAYOUT.to_json()
    room = HEADER - 64 - len(segment._facts(FM, LAYOUT, rows=2**32 - 1, index="0" * 64)) + len(LAYOUT.representation)
    with pytest.raises(StoreError, match=r"header of a segment of FM@0002 would take 4033 bytes, .* 4032.*'x{32}'"):
        put(store, 1, layout=Layout(**whole | {"representation": "x" * (room + 1)}))
    assert store.snapshots() == [] and not (tmp_path / "store").exists()
    put(store, 1, layout=Layout(**whole | {"representation": "x" * room}))
    store.commit(FM)
    assert byte_of(open_store(tmp_path / "store")) == 1


def test_commit_whose_merge_fails_has_committed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(tmp_path, max_segments=1)
    put(store, 1)
    store.commit(FM)
    (first,) = (tmp_path / SEGMENTS).iterdir()
    data = first.read_bytes()
    first.write_bytes(data[:HEADER] + bytes([data[HEADER] ^ 1]) + data[HEADER + 1 :])
    for byte in (2, 3):
        put(store, byte)
        store.commit(FM)
        assert "FM@0002 is committed, its segments could not be merged" in caplog.text
        assert str(first) in caplog.text
        assert store.stats(FM).segments == byte
        caplog.clear()
    first.write_bytes(data)
    assert byte_of(open_store(tmp_path)) == 3
    put(store, 4)
    store.commit(FM)
    assert caplog.text == "" and store.stats(FM).segments == 1
    assert byte_of(open_store(tmp_path)) == 4


def test_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"file.*cannot be read \(Not a directory\)"):
        put(open_store(tmp_path / "file" / "store"), 1)


def test_layout_that_somebody_else_has_committed_meanwhile(tmp_path: Path) -> None:
    first, second = open_store(tmp_path), open_store(tmp_path)
    put(first, 1)
    put(second, 2, layout=Layout(representation="penultimate", width=4, codec="bytes", row_bytes=4, model="ab12"))
    first.commit(FM)
    with pytest.raises(ConflictError, match="somebody else has committed meanwhile"):
        second.commit(FM)
    assert byte_of(first) == byte_of(second) == byte_of(open_store(tmp_path)) == 1


def test_threads_of_one_engine_see_whole_commits(path: Path) -> None:
    def read() -> list[int]:
        seen = [byte_of(store)]
        while seen[-1] < 12:
            seen.append(byte_of(store))
            time.sleep(0.0005)
        return seen

    store = open_store(path, max_segments=2)
    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        for byte in range(3, 13):
            put(store, byte)
            store.commit(FM)
        for reader in readers:
            assert reader.result() == sorted(reader.result())


def test_manifest_of_another_version_is_not_guessed_at(path: Path) -> None:
    text = b'{"generation": 1, "shards": []}'
    (path / NAME).write_bytes(hashlib.sha256(text).hexdigest().encode() + text)
    with pytest.raises(StoreError, match="another version of this program"):
        byte_of(open_store(path))


def test_left_overs_are_removed_by_the_next_to_write(path: Path) -> None:
    for name in ("FM@0002.000000009", "garbage"):
        (path / SEGMENTS / name).write_bytes(b"x")
    store = open_store(path)
    assert byte_of(store) == 2 and store.verify() == []
    store.move("FM/latest", expected=None, to=FM)
    assert len(list((path / SEGMENTS).iterdir())) == 3


def test_reader_of_a_merged_segment_reads_on(path: Path) -> None:
    """A reader that knows the old manifest, and has not opened its segments yet, or has."""
    fresh, warm, writer = open_store(path), open_store(path), open_store(path)
    assert fresh.snapshots() == [OLD, FM] and byte_of(warm) == 2
    writer.compact(FM)
    writer.collect()
    assert byte_of(fresh) == byte_of(warm) == 2


def test_segment_that_is_gone_for_good_is_named(path: Path) -> None:
    gone = min((path / SEGMENTS).iterdir())
    gone.unlink()
    with pytest.raises(StoreError, match="it is missing") as raised:
        byte_of(open_store(path), OLD if OLD in gone.name else FM)
    assert str(gone) in str(raised.value)


def test_commits_merge_as_they_go(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", max_segments=2)
    for byte in range(1, 30):
        put(store, byte)
        store.commit(FM)
        assert store.stats(FM).segments <= 2
        assert byte_of(store) == byte and int(store.get(FM, KEY, as_of=byte - 1).found.sum()) == 20 * (byte > 1)
    store.compact(FM)
    assert store.stats(FM).rows == 40, "the latest of each key and the one before"


def test_only_what_is_needed_is_imported() -> None:
    code = "import sys, hypercast.store.local.engine; print({'torch', 'pyarrow', 'pandas'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[4], check=True
    )
    assert done.stdout.strip() == "set()"
