"""A writer that is killed at every step again and again, while four readers look: run as a program, without torch.

``python kills.py ROOT KILLS`` prints one JSON object: kills by step, reads, and what was wrong (nothing, one hopes).

Two things are written. Rows of ``LOG@0001`` are all replaced by each commit, so that a reader who sees two versions in
one batch has caught a commit in the middle. Snapshots ``FM@NNNN`` are published, pointed to, and dropped; their rows
hold their number, so that one that is half there, or not the one that it is called, shows.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from hypercast.pins import snapshot_name
from hypercast.store.engine import Layout, Rows
from hypercast.store.local import steps
from hypercast.store.local.engine import LocalEngine
from hypercast.store.local.manifest import SEGMENTS
from hypercast.store.local.reader import Reader
from hypercast.store.local.steps import Step

LAYOUT = Layout(representation="penultimate", width=8, codec="int64", row_bytes=64, model="ab12")
KEY = np.arange(40 * 3).reshape(40, 3)
LOG, POINTER = "LOG@0001", "FM/latest"
READERS = 4


def open_store(root: Path, *, bulk: bool = False) -> LocalEngine:
    return LocalEngine.Config(path=root, max_segments=2, bulk_bytes=1 if bulk else 1 << 20).build()


def vectors(version: int) -> np.ndarray:
    """Every number of a vector says whose it is and of which version."""
    return np.repeat(KEY[:, :1] * 1_000_000 + version, 8, axis=1)


def put(store: LocalEngine, snapshot: str, version: int) -> None:
    at = np.full(len(KEY), version)
    payload = vectors(version).view(np.uint8)
    store.put(snapshot, LAYOUT, key=KEY, computed_at=at, history_end=at, payload=payload)


def version_of(rows: Rows) -> int:
    """The one version of all rows, 0 if none is there; anything else is wrong."""
    if not rows.found.any():
        return 0
    version = int(rows.computed_at[0])
    payload = np.ascontiguousarray(rows.payload).view(np.int64)
    if not rows.found.all() or (rows.computed_at != version).any() or not np.array_equal(payload, vectors(version)):
        raise AssertionError(f"mixed: {rows.found.tolist()} {rows.computed_at.tolist()} {payload[:, 0].tolist()}")
    return version


def write(root: Path, tell: int, doomed: Step, countdown: int) -> None:
    """Publish on and on, until the end at ``doomed``; ``tell`` of each version that is kept."""

    def reached(step: Step) -> None:
        nonlocal countdown
        countdown -= step == doomed
        if not countdown:
            os.kill(os.getpid(), signal.SIGKILL)

    store = open_store(root, bulk=countdown % 2 == 0)
    steps.reached = reached
    while True:
        version = max(version_of(store.get(LOG, KEY)), *(int(name[-4:]) for name in ["X@0000", *store.snapshots()])) + 1
        put(store, LOG, version)
        store.commit(LOG)
        os.write(tell, f"{version}\n".encode())
        name, before = snapshot_name("FM", version), store.pointers().get(POINTER)
        put(store, name, version)
        store.commit(name)
        store.move(POINTER, expected=before, to=name)
        for other in store.snapshots():
            if other.startswith("FM@") and other != name:
                store.drop(other)
        store.collect()


def read(root: Path, tell: int) -> None:
    """Look until told to stop, then tell of what was seen."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    store, reads, newest, wrong = open_store(root), 0, 0, ""
    try:
        while not stopped:
            version = version_of(store.get(LOG, KEY))
            assert version >= newest, f"{version} after {newest}"
            newest, name = version, store.pointers().get(POINTER)
            if name is not None:
                # Dropped in between is allowed; partly there, or another one, is not.
                assert version_of(store.get(name, KEY)) in (0, int(name[-4:]))
            reads += 1
            # Four who never rest would leave the writer little of a small machine.
            time.sleep(0.001)
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    os.write(tell, json.dumps({"reads": reads, "wrong": wrong[:2_000]}).encode())


def fork(function: object, *arguments: object) -> tuple[int, int]:
    """Process, and where it tells."""
    hear, tell = os.pipe()
    process = os.fork()
    if not process:
        try:
            function(arguments[0], tell, *arguments[1:])
        finally:
            os._exit(0)
    os.close(tell)
    return process, hear


def hear_all(hear: int) -> str:
    with os.fdopen(hear) as file:
        return file.read()


def kill(root: Path, step: Step, countdown: int) -> str:
    """One writer's life, and what is wrong afterwards."""
    process, hear = fork(write, root, step, countdown)
    told = hear_all(hear).split()
    status = os.waitpid(process, 0)[1]
    if not os.WIFSIGNALED(status):
        return f"{step}: the writer ended by itself"
    store = open_store(root)
    version = version_of(store.get(LOG, KEY))
    if version < int(told[-1] if told else 0):
        return f"{step}: {told[-1]} was kept, {version} is there"
    damage = store.verify()
    return f"{step}: {damage[0]}" if damage else ""


def main(root: Path, kills: int) -> dict[str, object]:
    random.seed(0)
    readers = [fork(read, root) for _ in range(READERS)]
    wrong, counts = [], dict.fromkeys(Step, 0)
    for number in range(kills):
        step = list(Step)[number % len(Step)]
        wrong.append(kill(root, step, random.randint(1, 8)))
        counts[step] += 1
    for process, _ in readers:
        os.kill(process, signal.SIGTERM)
    told = [json.loads(hear_all(hear)) for _, hear in readers]
    for process, _ in readers:
        os.waitpid(process, 0)
    # The next one to write removes what the killed left behind.
    store = open_store(root)
    put(store, LOG, 9_999_999)
    store.commit(LOG)
    left = {path.name for path in (root / SEGMENTS).iterdir()} - Reader(root).manifest().files()
    return {
        "kills": counts,
        "reads": [one["reads"] for one in told],
        "wrong": [text for text in [*wrong, *(one["wrong"] for one in told)] if text],
        "left": sorted(left),
        "torch": "torch" in sys.modules,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
