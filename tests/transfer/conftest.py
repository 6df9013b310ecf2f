"""Made-up predictions: one column per arm and seed, noisier for weaker arms."""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pytest

from transfer import predictions
from transfer.predictions import Column

NOISE = {"control": 1.0, "control_matched": 0.9, "tae": 0.5, "logit_residual": 0.7, "treated": 0.3, "fm_head": 0.6}

MakeTable = Callable[..., pa.Table]


def _make_table(
    *,
    seed: int = 0,
    requests: int = 300,
    users: int = 60,
    noise: Mapping[str, float] = NOISE,
    seeds: int = 2,
    unknown: float = 0.0,
    split: bool = True,
) -> pa.Table:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 12, requests)
    request = np.repeat(np.arange(requests), sizes)
    user = random.integers(0, users, requests)[request]
    rows = len(request)
    logit = random.normal(-1.0, 1.0, rows) + random.normal(0.0, 0.5, users)[user]
    label = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    columns = [Column("buy", arm, s) for arm in noise for s in range(1 if arm == "fm_head" else seeds)]
    values = {
        "request_id": request,
        "user_id": user * 7919,
        "candidate_id": np.arange(rows, dtype=np.int32),
        "time": pa.array(1_000_000 * request).cast(pa.timestamp("us", tz="UTC")),
        "weight": random.choice([1.0, 4.0, 9.0], rows).astype(np.float32),
        "stratum": random.integers(0, 3, rows).astype(np.int8),
        "tag_split_trip": request % 5 == 0,
        "label_buy": pa.array(label, mask=random.random(rows) < unknown),
    }
    for column in columns:
        values[column.name] = 1 / (1 + np.exp(-(logit + random.normal(0.0, noise[column.arm], rows))))
    schema = predictions.schema(tasks=["buy"], tags=["split_trip"] if split else [], columns=columns)
    return pa.table({field.name: pa.array(values[field.name]).cast(field.type) for field in schema}, schema=schema)


@pytest.fixture(scope="session")
def make_table() -> MakeTable:
    """Factory of prediction tables of the task ``buy``; the arms' noise sets their order."""
    return _make_table
