"""A TAE log with six rows, for tests of the log."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hypercast.pins import Pin
from hypercast.registry import Registry, Snapshot
from hypercast.store.embeddings import Embeddings
from hypercast.store.segment import Segment
from hypercast.store.status import MICROSECONDS
from hypercast.store.tae_log import TaeLog

DAY = 86_400 * MICROSECONDS
WATERMARK = 1000 * DAY
PIN = Pin(expert="home", lineage="FM")


def publish(root: Path, watermark: int = WATERMARK, **changed: Any) -> Snapshot:
    arguments: dict[str, Any] = {
        "lineage": "FM",
        "tensors": {"weight": torch.tensor([float(watermark)])},
        "watermark": watermark,
        "schema_hash": "s",
        "dims": {"penultimate": 3, "sequence": 2},
        "dtype": "float16",
        "tasks": ["buy", "click"],
        "metrics": {},
        "parent": None,
        "metadata": {},
    }
    return Registry(root).publish(**arguments | changed)


class World:
    """Six rows of three requests, one day apart from the watermark on, in one window."""

    def __init__(self, root: Path, **changed: Any) -> None:
        self.log = TaeLog.Config(fresh_for=2 * 86_400, ttl=4 * 86_400).build(root)
        self.snapshot = publish(root, **changed)
        self.request_id = np.array([7, 7, 3, 3, 3, 9])
        self.candidate_id = np.array([1, 0, 2, 0, 1, 0], np.int32)
        self.time = WATERMARK + DAY * np.array([1, 1, 3, 3, 3, 5])
        self.vector = np.arange(1, 19, dtype=np.float32).reshape(6, 3)
        self.logit = np.linspace(-1, 1, 6, dtype=np.float32)

    def table(self, snapshot: Snapshot | None = None, **changed: Any) -> pa.Table:
        arguments: dict[str, Any] = {
            "snapshot": snapshot or self.snapshot,
            "request_id": self.request_id,
            "candidate_id": self.candidate_id,
            "item_id": np.arange(6),
            "time": self.time,
            "representations": {"penultimate": torch.from_numpy(self.vector)},
            "teacher_logits": {"buy": self.logit, "click": torch.from_numpy(2 * self.logit)},
        }
        return self.log.rows(**arguments | changed)

    def write(self, table: pa.Table | None = None, **changed: Any) -> Segment:
        arguments = {"snapshot": self.snapshot, "window": 12, "requests_digest": "d"} | changed
        return self.log.write(table=self.table() if table is None else table, **arguments)

    def read(self, rows: Any = slice(None), **changed: Any) -> Embeddings:
        arguments: dict[str, Any] = {
            "window": 12,
            "pin": PIN,
            "request_id": self.request_id[rows],
            "candidate_id": self.candidate_id[rows],
            "time": self.time[rows],
            "width": 3,
            "tasks": ["click", "buy"],
            "requests_digest": "d",
        }
        return self.log.read(**arguments | changed)
