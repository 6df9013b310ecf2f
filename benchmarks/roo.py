"""Requests against impressions: storage, the way into the trainer, and training of the foundation model.

Side by side: one sequence a request, whose candidates share it, and one sequence an impression. Both sides of each
comparison hold the same impressions, in the same order, in equally many batches.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from benchmarks.options import Options, Values
from benchmarks.roo_histories import histories
from benchmarks.roo_storage import storage
from benchmarks.timing import in_turn, ratios, spread
from benchmarks.training import HOUSEHOLDS, PLATFORM, step, trainer
from foundation.steps import FoundationLearner
from hypercast.runtime.config import PlatformConfig
from hypercast.training.memory import keep_freed_memory
from streaming import config as configuration
from streaming.batch import BatchReader, RequestBatch
from streaming.dataset import Dataset
from streaming.importers.complete_journey import CompleteJourney
from streaming.layout import layout
from streaming.prefetch import Prefetch
from streaming.requests import Requests
from streaming.workspace import Workspace

WINDOW, BATCHES, ROUNDS = 40, 6, 7
LOADED = 30
"""Batches of the loader's and the prefetching measurements."""


def measure(options: Options) -> Values:
    """Keys are described in docs/benchmarks.md. ``--data`` takes an imported data set instead of a sample."""
    keep_freed_memory()
    config = configuration.load(PLATFORM, PlatformConfig).foundation
    history = config.model.history
    with ExitStack() as stack:
        path = options.data
        if path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "journey"
            CompleteJourney.Config(user_share=HOUSEHOLDS).build(path)
        workspace = Workspace(Dataset.open(path), prefetch=Prefetch.Config(workers=0))
        return {
            "history": history,
            **counted(workspace, history=history),
            **storage(options, workspace, history=history),
            **training(workspace, config),
            **loading(workspace, config),
            **prefetching(workspace, config),
            **histories(options),
        }


def counted(workspace: Workspace, *, history: int) -> Values:
    counts = layout(workspace, history=history)
    return {
        "requests": counts.requests,
        "impressions": counts.impressions,
        "impressions_per_request": round(counts.impressions / counts.requests, 2),
        "dedup_ratio": round(counts.dedup_ratio, 2),
        "byte_ratio": round(counts.byte_ratio, 2),
        "request_plain_mb": round(counts.request_bytes / 1e6, 1),
        "impression_plain_mb": round(counts.impression_bytes / 1e6, 1),
    }


def training(workspace: Workspace, config: FoundationLearner.Config) -> Values:
    """The foundation model's steps, forward, backward and optimiser, on the same impressions in both layouts."""
    reader, window = reader_of(workspace, config), workspace.dataset.windows[WINDOW]
    requests = workspace.requests(window.index).slice(0, BATCHES * config.batch_size)
    cuts = [requests.slice(first, first + config.batch_size) for first in range(0, len(requests), config.batch_size)]
    known = {"since": window.start, "before": window.end}
    sides = {
        "request": [reader.batch(cut, **known) for cut in cuts],
        "impression": [reader.batch(cut.impressions(), **known) for cut in cuts],
    }
    impressions = len(requests.item)
    seconds = in_turn(ROUNDS, **{name: epoch(workspace, config, batches) for name, batches in sides.items()})
    values: Values = {}
    for name, batches in sides.items():
        values |= spread(f"train_us_per_impression_{name}", [1e6 * each / impressions for each in seconds[name]], 1)
        values[f"train_tokens_{name}"] = sum(tokens(batch) for batch in batches)
    return {
        "train_impressions": impressions,
        **ratios("train_speedup", seconds["impression"], seconds["request"]),
        **values,
    }


def epoch(workspace: Workspace, config: FoundationLearner.Config, batches: list[RequestBatch]) -> Callable[[], None]:
    """Steps of a model of its own over all ``batches``."""
    engine = trainer(config, config.model, workspace)

    def run() -> None:
        for batch in batches:
            step(engine, batch, config.surface_weight)

    return run


def tokens(batch: RequestBatch) -> int:
    """Tokens of the foundation model's sequences: two of context a sequence, history, candidates."""
    return 2 * len(batch) + len(batch.history["all"].item_L) + len(batch.item_C)


def loading(workspace: Workspace, config: FoundationLearner.Config) -> Values:
    """From the files to batches, alone, against the trainer's steps on the same requests.

    The impression side finds its histories as the request side does: it is spared the reading of its copies.
    """
    reader, window = reader_of(workspace, config), workspace.dataset.windows[WINDOW]
    whole = workspace.requests(window.index)
    requests = whole.slice(0, LOADED * config.batch_size)
    share = len(requests) / len(whole)
    per_request = len(requests.item) / len(requests)
    batches = list(reader.batches(requests, size=config.batch_size, since=window.start, before=window.end))

    def load(given: Requests, size: int) -> Callable[[], Any]:
        return lambda: sum(len(batch) for batch in reader.batches(given, size=size))

    seconds = in_turn(
        ROUNDS,
        read=lambda: workspace.requests(window.index),
        request=load(requests, config.batch_size),
        impression=load(requests.impressions(), round(config.batch_size * per_request)),
        train=epoch(workspace, config, batches),
    )
    # Reading a window's file costs each of its requests the same.
    loaded = [read * share + build for read, build in zip(seconds["read"], seconds["request"], strict=True)]
    copied = [read * share + build for read, build in zip(seconds["read"], seconds["impression"], strict=True)]
    impressions = len(requests.item)
    return {
        **spread("examples_per_s_request", [impressions / each for each in loaded], 0),
        **spread("examples_per_s_impression", [impressions / each for each in copied], 0),
        **ratios("loader_speedup", copied, loaded),
        **spread("examples_per_s_trainer", [impressions / each for each in seconds["train"]], 0),
        **ratios("loader_headroom", seconds["train"], loaded),
        **spread("loader_ms_per_batch", [1e3 * each / len(batches) for each in loaded]),
    }


def prefetching(workspace: Workspace, config: FoundationLearner.Config) -> Values:
    """Training with batches made when asked for, ahead by a thread, and ahead by a process."""
    window = workspace.dataset.windows[WINDOW]
    requests = workspace.requests(window.index).slice(0, LOADED * config.batch_size)
    engine = trainer(config, config.model, workspace)
    kinds: tuple[tuple[str, Literal["thread", "process"], int], ...] = (
        ("inline", "thread", 0),
        ("thread", "thread", 1),
        ("process", "process", 1),
    )

    def train(kind: Literal["thread", "process"], workers: int) -> Callable[[], None]:
        reader = reader_of(Workspace(workspace.dataset, prefetch=Prefetch.Config(kind=kind, workers=workers)), config)

        def run() -> None:
            for batch in reader.batches(requests, size=config.batch_size, since=window.start, before=window.end):
                step(engine, batch, config.surface_weight)

        return run

    seconds = in_turn(ROUNDS, **{name: train(kind, workers) for name, kind, workers in kinds})
    return {
        **ratios("prefetch_thread_speedup", seconds["inline"], seconds["thread"]),
        **ratios("prefetch_process_speedup", seconds["inline"], seconds["process"]),
    }


def reader_of(workspace: Workspace, config: FoundationLearner.Config) -> BatchReader:
    return workspace.reader({"all": (workspace.engagements, config.model.history)})
