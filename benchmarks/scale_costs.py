"""What a capacity plan is made of: processor time and bytes for one token, one candidate, one key.

Processor time, not wall time: it is what machines are bought for, and other work beside the measurement adds little.
One thread; Complete Journey at 12 % of the households, in the middle of the year, when histories are full.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.options import Options, Values
from benchmarks.scale_experts import ARMS, PLATFORM
from benchmarks.scale_keys import measure_keys
from benchmarks.study_runs import changed
from foundation.model import CONTEXT_TOKENS
from hypercast.pins import Pin
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import ExpertJob, FoundationJob
from hypercast.runtime.online import OnlineFeed
from hypercast.runtime.platform import import_if_absent
from hypercast.store.online import OnlineStore
from streaming import config as configuration
from streaming.dataset import Window

FIRST, WINDOWS = 26, 4
READS, BATCH = 2000, 100


def measure_costs(options: Options) -> Values:
    """Keys are described in docs/benchmarks.md."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        config = _config(options, Path(work))
        import_if_absent(config.dataset, lambda message, share: None)
        foundation = FoundationJob(config, config.run)
        first, *later = foundation.workspace.dataset.windows
        foundation.learner.prepare(first)  # the untrained model is what the first of the windows is published by
        windows = later[FIRST : FIRST + WINDOWS]
        scored, trained, learned = 0.0, 0.0, 0.0
        for window in windows:
            scored += _seconds(foundation.publish, window.index)
            trained += _seconds(foundation.run_window, window.index)
        experts = ExpertJob(config, config.run, foundation.workspace.dataset.config.surfaces)
        for window in windows:
            learned += _seconds(experts.run_window, window.index, None)
        again = sum(_seconds(trainer.learner.evaluate, windows[-1]) for trainer in experts.trainers.values())
        counts = _counts(foundation, config.foundation.model.history, windows)
        last = _counts(foundation, config.foundation.model.history, windows[-1:])
        return {
            "cost.fm_train_us_per_token": _micro(trained, counts["tokens"]),
            "cost.fm_score_us_per_token": _micro(scored, counts["tokens"]),
            "cost.expert_train_us_per_candidate": _micro(learned, counts["candidates"] * len(ARMS)),
            "cost.expert_score_us_per_candidate": _micro(again, last["candidates"] * len(ARMS)),
            "cost.log_bytes_per_candidate": round(_size(config.run / "tae_log") / counts["candidates"], 1),
            "cost.snapshot_mib": round(_size(config.run / "registry") / 2**20 / (WINDOWS + 1), 2),
            **{f"cost.of_{name}": value for name, value in counts.items()},
            **_store(foundation, config, windows[-1]),
            **measure_keys(),
        }


def _counts(foundation: FoundationJob, history: int, windows: list[Window]) -> dict[str, int]:
    """Requests, candidates and tokens of the windows, as the foundation model sees them."""
    workspace = foundation.workspace
    reader = workspace.reader({"all": (workspace.engagements, history)})
    counts = {"requests": 0, "candidates": 0, "tokens": 0}
    for window in windows:
        for batch in reader.batches(workspace.requests(window.index), size=64, since=window.start, before=window.end):
            counts["requests"] += len(batch)
            counts["candidates"] += len(batch.item_C)
            counts["tokens"] += CONTEXT_TOKENS * len(batch) + len(batch.history["all"].item_L) + len(batch.item_C)
    return counts


def _store(foundation: FoundationJob, config: PlatformConfig, window: Window) -> Values:
    """Putting published rows into the local online store, and reading a request's keys at a time."""
    folder = config.run / "online"
    feed = OnlineFeed(
        config=OnlineStore.Config(), folder=folder, publisher=foundation.publisher, workspace=foundation.workspace
    )
    put = _seconds(feed.feed, window)
    lineage = config.foundation.publisher.lineage
    read_from = [one for one in foundation.publisher.log.segments() if one.facts.rows]
    rows = sum(one.facts.rows for one in read_from)
    requests = foundation.workspace.requests(window.index)
    row = np.random.default_rng(0).integers(0, len(requests.item_id), (READS, BATCH))
    keys = {"surface": requests.surface, "user_id": requests.user_id[requests.owner], "item_id": requests.item_id}

    pin = Pin(expert="costs", lineage=lineage, version=None)
    width = config.foundation.model.representation

    def read() -> None:
        for each in row:
            asked: dict[str, Any] = {name: values[each] for name, values in keys.items()}
            feed.store.get(pin=pin, now=window.end, width=width, **asked)

    spent = _seconds(read)
    return {
        "cost.local_put_us_per_key": _micro(put, rows),
        "cost.local_read_us_per_key": _micro(spent, READS * BATCH),
        "cost.local_bytes_per_key": round(_size(folder) / rows, 1),
        "cost.of_keys": rows,
    }


def _seconds(work: Callable[..., object], *arguments: Any) -> float:
    """Processor seconds of this process, over all its threads."""
    begun = time.process_time()
    work(*arguments)
    return time.process_time() - begun


def _micro(seconds: float, count: int) -> float:
    return round(seconds / count * 1e6, 3)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _config(options: Options, work: Path) -> PlatformConfig:
    base = configuration.load(PLATFORM, PlatformConfig)
    changes: dict[str, Any] = {"seeds": [0], "expert.arms": ARMS, "threads": 1, "engine": "local"}
    changes["dataset.path"] = str(options.data or work / "data")
    return changed(base, {**changes, "run": str(work / "run"), "name": "scale-costs"})
