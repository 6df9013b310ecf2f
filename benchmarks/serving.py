"""The service under load: how many requests a second it answers within 50 ms, and what it does at twice as many.

``hypercast serve`` as it is started from the command line, over a platform as large as the full run's
(:mod:`benchmarks.serving_world`), asked by a client in a process of its own (:mod:`benchmarks.serving_load`).

The highest rate of a tier is the highest tried at which 99 % of the requests were answered within 50 ms, without an
error, and, of the tier ``live``, 99 % of the answers had FRESH vectors for all candidates: by going down the ladder a
service can answer many more.
"""

import contextlib
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from benchmarks import serving_world
from benchmarks.options import Options, Values
from benchmarks.serving_world import CANDIDATES, World
from hypercast.registry import Registry
from streaming.dataset import Dataset

LIMIT_MS, FRESH = 50.0, 0.99
FIRST_RATE = {"expert": 40.0, "cached": 40.0, "live": 20.0}
STEP, REFINED = 1.5, 3
"""Rates rise, or fall, by so much until one is too high, or not; then the gap is halved so many times."""
LOWEST = 2.0
WARM_SECONDS, TRY_SECONDS, HOLD_SECONDS = 3.0, 6.0, 20.0
TRIED = 300
"""Requests that a rate is tried with, at least: among fewer, an answer or two decide what 99 % of them are."""
SWAPS, SWAP_RATE = 50, 8.0
SERVE = "from hypercast.cli.main import main; main()"


@dataclass(kw_only=True)
class Server:
    """A running service. Each load goes on with the questions where the one before ended."""

    port: int
    questions: Path
    seed: Iterator[int]
    first: int = 0

    def load(self, rate: float, seconds: float, *, last: int | None = None) -> dict[str, Any]:
        """What a client saw; ``last``: it asks only the questions before that index, over and over."""
        arguments = [self.port, rate, seconds, next(self.seed), self.questions, self.first if last is None else 0]
        command = [sys.executable, "-m", "benchmarks.serving_load", *map(str, arguments)]
        command += [str(last)] if last is not None else []
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        self.first += round(rate * seconds)
        return json.loads(done.stdout)


@contextlib.contextmanager
def serving(world: World, mode: str) -> Iterator[Server]:
    """``hypercast serve`` in that mode until the end of the block."""
    command = [sys.executable, "-c", SERVE, "serve", str(world.file), "--mode", mode, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = ""
            while not (found := re.search(r"serving .* on http://[^:]+:(\d+)", said)):
                line = process.stderr.readline()
                if not line:
                    raise RuntimeError(f"the service did not start: {said}")
                said += line
            threading.Thread(target=process.stderr.read, daemon=True).start()
            server = Server(port=int(found[1]), questions=world.questions, seed=itertools.count())
            server.load(FIRST_RATE[mode] / 2, WARM_SECONDS)
            yield server
        finally:
            process.terminate()


def measure(options: Options) -> Values:
    """Keys are described in docs/benchmarks.md."""
    with contextlib.ExitStack() as stack:
        folder = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        world = serving_world.build(folder, options.data)
        shutil.rmtree(world.config.run / "online", ignore_errors=True)  # left by an earlier one
        values: Values = {"history": round(serving_world.history_length(world), 1), "candidates": CANDIDATES}
        for mode in ("expert", "live", "cached"):
            if mode == "cached":
                values |= swapping(world)
                fill(world)
            with serving(world, mode) as server:
                values |= tier(mode, server)
    show(values)
    return values


def tier(mode: str, server: Server) -> Values:
    """The highest rate, latencies at 0.8 of it and, of ``live``, what becomes of twice as much."""
    highest = saturation(mode, server)
    if highest is None:
        return {}
    held = server.load(0.8 * highest, HOLD_SECONDS)
    values: Values = {f"{mode}.max_rps_p99_50ms": round(highest, 1), f"{mode}.requests_08x": held["requests"]}
    values |= {f"{mode}.{name}_ms": held[name] for name in ("p50", "p99", "p999")}
    if mode == "live":
        twice = server.load(2 * highest, HOLD_SECONDS)
        values |= {
            "live.fresh_share_08x": round(held["all_fresh"], 4),
            "live.live_share_08x": round(held["live"], 4),
            "live.errors_at_2x": twice["errors"],
            "live.fresh_share_2x": round(twice["fresh"], 4),
            "live.live_share_2x": round(twice["live"], 4),
            "live.p99_ms_2x": twice["p99"],
        }
    return values


def saturation(mode: str, server: Server) -> float | None:
    """The highest rate, requests a second; None if even the first was too high."""

    def holds(rate: float) -> bool:
        seen = server.load(rate, max(TRY_SECONDS, TRIED / rate))
        enough = mode != "live" or seen["all_fresh"] >= FRESH
        Console(stderr=True).print(f"{mode} at {rate:.1f}/s: {seen}", soft_wrap=True, highlight=False)
        return seen["p99"] <= LIMIT_MS and not seen["errors"] and enough

    low, high = 0.0, FIRST_RATE[mode]
    while holds(high):
        low, high = high, high * STEP
    while not low:
        if high < LOWEST:
            return None
        if holds(high / STEP):
            low = high / STEP
        else:
            high /= STEP
    for _ in range(REFINED):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def swapping(world: World) -> Values:
    """Let the channel name one snapshot, then the other, while questions are asked."""
    registry = Registry(world.config.run / "registry")
    names = [snapshot.name for snapshot in registry.list("FM")][-2:]
    with serving(world, "live") as server:
        seconds, ended = 1.0 * SWAPS, threading.Event()

        def swap() -> None:
            for number in range(SWAPS):
                registry.move("FM", "latest", expected=registry.current("FM").name, to=names[number % 2])
                if ended.wait(seconds / SWAPS):
                    return

        mover = threading.Thread(target=swap)
        mover.start()
        seen = server.load(SWAP_RATE, seconds + 3, last=20)
        ended.set()
        mover.join()
        done = counted(server.port, "hypercast_swaps_total", outcome="swapped")
    return {
        "swaps_done": round(done),
        "swap_failures": seen["errors"] + seen["mixed"],
        "swap_requests": seen["requests"],
        "swap_versions": seen["versions"],
        "swap_p99_ms": seen["p99"],
    }


def counted(port: int, name: str, **labels: str) -> float:
    """What the service on that port has counted; 0 where it has not yet."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == name and sample.labels == labels)


def fill(world: World) -> None:
    """Give the online store a vector for every question's candidates, computed a second before the first question."""
    assert world.config.online is not None
    snapshot = Registry(world.config.run / "registry").list("FM")[-1]
    dataset = Dataset.open(world.config.dataset.path).config
    random, store = np.random.default_rng(0), world.config.online.build(world.config.run / "online")
    questions = [json.loads(line) for line in world.questions.read_text().splitlines()]
    computed_at = questions[0]["time"] - serving_world.SECOND
    for asked in questions:
        rows = len(asked["item_ids"])
        time_N = np.full(rows, computed_at)
        store.put(
            snapshot=snapshot,
            surface=np.full(rows, dataset.surfaces.index(asked["surface"])),
            user_id=np.full(rows, asked["user_id"]),
            item_id=np.array(asked["item_ids"]),
            vector=random.standard_normal((rows, snapshot.dims["penultimate"]), np.float32),
            computed_at=time_N,
            history_end=time_N,
        )
    store.engine.commit(snapshot.name)
    store.close()


def show(values: Values) -> None:
    """One row a tier."""
    columns = ("max_rps_p99_50ms", "p50_ms", "p99_ms", "p999_ms", "fresh_share_08x", "fresh_share_2x", "errors_at_2x")
    table = Table("tier", *columns)
    for mode in ("expert", "cached", "live"):
        table.add_row(mode, *(str(values.get(f"{mode}.{name}", "")) for name in columns))
    Console().print(table)
