"""The local engine with more on disk than fits in memory: 20 million vectors of 512 bytes, under a cap of 2 GiB.

All of it — putting, merging, reading — happens in a child process in a memory control group, whose cap counts the
page cache too. Where no such group can be made (it takes root), `capped_gib` is 0 and the figures are those of whatever
memory there is. Vectors follow from their keys, so every row that is read can be checked.

Shape legend: N keys, W words of a vector.
"""

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.options import Options, Values
from hypercast.store.engine import Bytes, Integers, Layout
from hypercast.store.local.engine import LocalEngine
from streaming.errors import DataError

ROWS, CHUNK = 20_000_000, 1_000_000
ROW_BYTES, BATCH, BATCHES = 512, 200, 2_000
CAP_GIB = 2
SNAPSHOT = "FM@0001"
LAYOUT = Layout(representation="penultimate", width=ROW_BYTES // 2, codec="float16", row_bytes=ROW_BYTES, model="ab12")


def measure(options: Options) -> Values:
    """Keys are described in docs/benchmarks.md."""
    with tempfile.TemporaryDirectory(dir=options.work) as temporary, memory_group(CAP_GIB << 30) as procs:
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        child = multiprocessing.get_context("fork").Process(target=run, args=(Path(temporary), procs, theirs))
        child.start()
        theirs.close()
        try:
            values: Values = ours.recv()
        except EOFError:
            child.join()
            raise DataError(f"the measuring process ended with status {child.exitcode}; -9 is out of memory") from None
        child.join()
    return {"rows": ROWS, "row_bytes": ROW_BYTES, "capped_gib": CAP_GIB if procs else 0, **values}


@contextmanager
def memory_group(limit: int) -> Iterator[Path | None]:
    """A new memory control group's file of processes; None if there can be none here."""
    root = Path("/sys/fs/cgroup")
    legacy = (root / "memory").is_dir()
    group = (root / "memory" if legacy else root) / f"hypercast-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if legacy else "memory.max")).write_text(str(limit))
    except OSError:
        if group.is_dir():
            group.rmdir()
        yield None
        return
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def run(folder: Path, procs: Path | None, pipe: Connection) -> None:
    """In the child: put everything, merge it into one segment, read at random, and send the figures."""
    if procs is not None:
        procs.write_text(str(os.getpid()))
    engine = LocalEngine.Config(path=folder, max_segments=ROWS // CHUNK).build()
    begun = time.perf_counter()
    for first in range(0, ROWS, CHUNK):
        key_N3 = keys(np.arange(first, first + CHUNK))
        time_N = key_N3[:, 2] + 1
        engine.put(SNAPSHOT, LAYOUT, key=key_N3, computed_at=time_N, history_end=time_N, payload=payload(key_N3))
        engine.commit(SNAPSHOT)
    loaded = time.perf_counter()
    engine.compact(SNAPSHOT)
    merged = time.perf_counter()
    random = np.random.default_rng(0)
    seconds, wrong = [], 0
    for _ in range(BATCHES):
        key_N3 = keys(random.integers(ROWS, size=BATCH))
        before = time.perf_counter()
        found = engine.get(SNAPSHOT, key_N3)
        seconds.append(time.perf_counter() - before)
        right_N = found.found & (found.computed_at == key_N3[:, 2] + 1) & (found.payload == payload(key_N3)).all(axis=1)
        wrong += BATCH - int(right_N.sum())
    absent = keys(random.integers(ROWS, size=BATCH))
    absent[:, 1] += 1  # users are even
    wrong += int(engine.get(SNAPSHOT, absent).found.sum())
    stats = engine.stats(SNAPSHOT)
    pipe.send(
        {
            "gib_on_disk": round(stats.bytes / (1 << 30), 2),
            "segments": stats.segments,
            "wrong": wrong,
            "put_rows_per_s": round(ROWS / (loaded - begun)),
            "merge_rows_per_s": round(ROWS / (merged - loaded)),
            "read_rows_per_s": round(BATCH * BATCHES / sum(seconds)),
            "p50_ms": round(1e3 * float(np.percentile(seconds, 50)), 3),
            "p99_ms": round(1e3 * float(np.percentile(seconds, 99)), 3),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        }
    )
    engine.close()


def keys(row_N: Integers) -> Integers:
    """int64 ``[N, 3]``, different for different rows."""
    return np.stack([row_N % 6, row_N // 6 * 2, row_N % 1_000_003], axis=1)


def payload(key_N3: Integers) -> Bytes:
    """uint8 ``[N, ROW_BYTES]``, another for another key."""
    word_W = np.arange(1, ROW_BYTES // 8 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed_NW = (key_N3.view(np.uint64) @ word_W[:3])[:, None] * (word_W | np.uint64(1))
    return (mixed_NW ^ (mixed_NW >> np.uint64(29))).view(np.uint8)
