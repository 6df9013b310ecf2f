"""Histories of 8,192 engagements for 64 requests, from an engagement log of 100 million rows that was built on disk.

Both building and reading run in a child process of their own, whose memory is reported: all of it, and what is its own,
without the pages of mapped files, which the system shares and takes back as it likes.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.options import Options, Values
from hypercast.training.memory import keep_freed_memory
from streaming.engagement_build import Block, build
from streaming.engagement_index import MappedLog
from streaming.history import EngagementLog, Events, gather

USERS, WINDOWS, A_WINDOW = 10_000, 100, 100  # each user has 100 engagements in each of 100 windows
ROWS = USERS * WINDOWS * A_WINDOW
ITEMS, SURFACES, ACTIONS = 1 << 20, 6, 4
WINDOW_SPAN = 7 * 86_400_000_000
REQUESTS, LENGTH, BATCHES, CHECKED = 64, 8_192, 2_000, 20


def histories(options: Options) -> Values:
    """``--work`` names the disk: about 1.5 GB."""
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        values: Values = {"history_rows": ROWS, "history_requests": REQUESTS, "history_length": LENGTH}
        for job in ("build_index", "read_histories"):
            code = f"from benchmarks import roo_histories as r; r.{job}({folder!r})"
            ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
            values |= json.loads(ended.stdout.splitlines()[-1])
        return values


def blocks() -> Iterator[Block]:
    """One block a window, sorted by (user, time)."""
    for window in range(WINDOWS):
        random = np.random.default_rng([window, 5])
        rows = USERS * A_WINDOW
        time_UE = np.sort(random.integers(WINDOW_SPAN, size=(USERS, A_WINDOW)), axis=1) + window * WINDOW_SPAN
        yield Block(
            user=np.repeat(np.arange(USERS) * 3, A_WINDOW),
            item=random.integers(ITEMS, size=rows),
            surface=random.integers(SURFACES, size=rows),
            action=random.integers(ACTIONS, size=rows),
            time=time_UE.ravel(),
        )


def build_index(folder: str) -> None:
    """Stream the blocks into an index."""
    begun = time.perf_counter()
    for _ in blocks():
        pass
    generated = time.perf_counter()
    index = Path(folder) / "index"
    index.mkdir()
    build(index, blocks, np.arange(ITEMS), {})
    # Blocks are generated twice while building.
    seconds = time.perf_counter() - generated - 2 * (generated - begun)
    size = sum(file.stat().st_size for file in index.iterdir())
    report({"index_gb": round(size / 1e9, 2), "index_build_rows_per_s": round(ROWS / seconds), **memory("index_build")})


def read_histories(folder: str) -> None:
    """Latency of finding and copying the histories of random users at random late times.

    The process keeps freed memory, as training does: else a third of the time goes into getting it anew.
    """
    keep_freed_memory()
    begun = time.perf_counter()
    log = MappedLog.open(Path(folder) / "index")
    opened = time.perf_counter() - begun
    random = np.random.default_rng(0)
    seconds = []
    for batch in range(CHECKED + BATCHES):
        user = random.integers(USERS, size=REQUESTS) * 3
        at = random.integers(85 * WINDOW_SPAN, WINDOWS * WINDOW_SPAN, size=REQUESTS)
        begun = time.perf_counter()
        start, end = log.spans(user, at, max_length=LENGTH)
        events = log.take(start, end)
        seconds.append(time.perf_counter() - begun)
        if batch < CHECKED:
            check(log, user, at, start, end, events)
    del seconds[:CHECKED]
    tokens = REQUESTS * LENGTH
    report(
        {
            **{f"history_p{share}_ms": round(1e3 * float(np.percentile(seconds, share)), 3) for share in (50, 99)},
            "history_max_ms": round(1e3 * max(seconds), 3),
            "history_tokens_per_s": round(tokens / float(np.median(seconds))),
            "index_open_s": round(opened, 2),
            **memory("history"),
        }
    )


def check(
    log: EngagementLog, user: np.ndarray, at: np.ndarray, start: np.ndarray, end: np.ndarray, events: Events
) -> None:
    """By other means: a history is as long as it should be, the user's own, earlier, and what follows it is not."""
    index, offsets = gather(start, end)
    owner = np.repeat(np.arange(len(user)), np.diff(offsets))
    own = log.users[np.searchsorted(log.first, index, side="right") - 1] == user[owner]
    earlier = (events.time < at[owner]) & (events.time == log.time[index]) & (events.item == log.item[index])
    followed = (end == log.first[user // 3 + 1]) | (log.time[np.minimum(end, len(log.time) - 1)] >= at)
    if not (own.all() and earlier.all() and followed.all() and (end - start == LENGTH).all()):
        raise RuntimeError("a history is not what it should be")


def memory(key: str) -> Values:
    """Peak of all resident pages, and of those that are this process's own, in MiB."""
    return {f"{key}_peak_mib": status("VmHWM") >> 10, f"{key}_own_mib": status("RssAnon") >> 10}


def status(key: str) -> int:
    """A line of this process's status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def report(values: Values) -> None:
    print(json.dumps(values))
