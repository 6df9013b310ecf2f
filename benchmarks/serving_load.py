"""An open-loop client: requests go out when a Poisson clock says, whether or not earlier ones were answered.

``python -m benchmarks.serving_load PORT RATE SECONDS SEED QUESTIONS [FIRST]`` prints one JSON object. Latency counts
from the time at which a request was to go out: what waits for a slow answer, here or there, is counted as slow.
A process of its own with bare sockets, so that it takes little from the server that it measures.
"""

import asyncio
import gc
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CONNECTIONS = 200
PATIENCE = 20.0
"""Seconds after which an answer is taken not to come."""


@dataclass(kw_only=True)
class Seen:
    """What came back. ``sound``: by snapshot and question the first answer's scores; ``mixed``: answers that differ."""

    milliseconds: list[float] = field(default_factory=list)
    errors: int = 0
    candidates: int = 0
    fresh: int = 0
    live: int = 0
    all_fresh: int = 0
    mixed: int = 0
    versions: set[str] = field(default_factory=set)
    sound: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    def take(self, told: dict[str, Any], question: int) -> None:
        status, rung = told["embeddings"]["status"], told["embeddings"]["rung"]
        fresh = status.count("FRESH")
        self.candidates += len(status)
        self.fresh += fresh
        self.live += rung.count("LIVE")
        self.all_fresh += fresh == len(status)
        snapshot, computed = told["models"]["snapshot"], told["embeddings"]["snapshot"]
        self.versions.add(told["models"]["version"])
        scores = np.array(list(told["scores"].values()))
        mixed = computed not in (None, snapshot) or not told["models"]["version"].startswith(f"{snapshot}+")
        if rung.count("LIVE") == len(rung):
            first = self.sound.setdefault((told["models"]["version"], question), scores)
            mixed |= not np.allclose(first, scores, atol=1e-4)
        self.mixed += mixed


class Client:
    """Connections that are kept, each with one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._free = asyncio.Semaphore(CONNECTIONS)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body."""
        async with self._free:
            kept = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = kept
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            size = int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
            body = await reader.readexactly(size)
            if b"connection: close" in head:
                writer.close()
            else:
                self._idle.append(kept)
            return int(head.split(b" ", 2)[1]), body


async def run(*, port: int, rate: float, seconds: float, seed: int, bodies: list[bytes], first: int) -> Seen:
    """Ask the questions in turn, from the one of that index on."""
    random, seen, client = np.random.default_rng(seed), Seen(), Client(port)
    head = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    requests = [head % len(body) + body for body in bodies]

    async def one(number: int, due: float) -> None:
        try:
            status, body = await asyncio.wait_for(client.ask(requests[number]), PATIENCE)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            seen.errors += 1
            return
        seen.milliseconds.append(1e3 * (time.perf_counter() - due))
        if status == 200:
            seen.take(json.loads(body), number)
        else:
            seen.errors += 1

    begun = time.perf_counter()
    due_N = begun + np.cumsum(random.exponential(1 / rate, size=round(rate * seconds)))
    tasks = []
    for place, due in enumerate(due_N.tolist()):
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one((first + place) % len(requests), due)))
    await asyncio.gather(*tasks)
    return seen


def summary(seen: Seen) -> dict[str, Any]:
    """One flat object."""
    percentiles = {
        name: round(float(np.percentile(seen.milliseconds, share)), 2) if seen.milliseconds else float("inf")
        for name, share in (("p50", 50), ("p99", 99), ("p999", 99.9))
    }
    return {
        **percentiles,
        "requests": len(seen.milliseconds),
        "errors": seen.errors,
        "fresh": seen.fresh / max(seen.candidates, 1),
        "live": seen.live / max(seen.candidates, 1),
        "all_fresh": seen.all_fresh / max(len(seen.milliseconds), 1),
        "mixed": seen.mixed,
        "versions": len(seen.versions),
    }


def main(port: str, rate: str, seconds: str, seed: str, questions: str, first: str = "0", last: str = "") -> None:
    """See the module; ``last``: only questions before that index."""
    bodies = [line.encode() for line in Path(questions).read_text().splitlines()][: int(last) if last else None]
    settings = {"port": int(port), "rate": float(rate), "seconds": float(seconds), "seed": int(seed)}
    gc.disable()  # a pause here would be taken for a slow answer
    seen = asyncio.run(run(**settings, bodies=bodies, first=int(first)))  # type: ignore[arg-type]
    sys.stdout.write(json.dumps(summary(seen)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
