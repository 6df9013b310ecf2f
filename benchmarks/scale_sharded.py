"""The foundation model on two workers against one, by the same code: speed, losses, bytes, and checkpoints.

A worker is a process of one thread on a core of its own, and so are the threads that build its batches. The two
settings take turns, worker 1 asleep while worker 0 trains alone.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import hypercast.tensors
from benchmarks.options import Options, Values
from benchmarks.timing import ratios, spread
from foundation.hstu.vocabulary import BatchVocabulary
from foundation.model import FoundationModel
from foundation.sharded.config import Sharding
from foundation.sharded.group import Group
from foundation.sharded.plan import DATA_PARALLEL
from foundation.sharded.processes import WorkerFailed, start
from foundation.sharded.steps import ShardedLearner, Step
from foundation.sharded.trainer import ShardedTrainer
from foundation.steps import FoundationLearner
from hypercast.runtime.config import PlatformConfig
from hypercast.training.memory import keep_freed_memory
from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.importers.complete_journey import CompleteJourney
from streaming.importers.synthetic import Synthetic
from streaming.workspace import Workspace

PLATFORM = Path("configs/platform/complete_journey.yaml")
HOUSEHOLDS = 0.12
WINDOW = 30
STEPS, ROUNDS = 8, 6
CURVE = 40
SHARDS = 4
CURVES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"dense": "fsdp2"},
    "column_wise": {"kinds": ["column_wise"]},
    "vectors_float16": {"vectors": "float16"},
    "gradients_float16": {"gradients": "float16"},
    "gradients_bfloat16": {"gradients": "bfloat16"},
}
"""Trainings on two workers whose losses are held against those of one."""


def measure_sharded(options: Options) -> Values:
    """Keys are described in docs/benchmarks.md. ``--data`` takes an imported Complete Journey instead of a sample."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data = options.data
        if data is None:
            data = folder / "journey"
            CompleteJourney.Config(user_share=HOUSEHOLDS).build(data)
        leader, _ = start(2, _speed, data)
        values: Values = {**leader, **_curves(data)}
        Synthetic.Config().build(folder / "tiny")
        return {**values, **_checkpoints(folder), **_budget(folder)}


def learner_of(group: Group, data: Path, config: FoundationLearner.Config, **sharding: Any) -> ShardedLearner:
    """One that trains and does not publish."""
    sharded = config.model_copy(update={"sharding": Sharding(workers=group.size, **sharding)})
    return ShardedLearner(config=sharded, workspace=Workspace(Dataset.open(data)), publisher=None, seed=0, group=group)


def _platform() -> FoundationLearner.Config:
    return configuration.load(PLATFORM, PlatformConfig).foundation


def _speed(group: Group, data: Path) -> Values:
    """Tokens a second, in turn: two workers, and the first of them alone."""
    keep_freed_memory()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[group.rank % len(cores)]})
    only_leader = dist.new_group([0])
    sides = {"two": learner_of(group, data, _platform())}
    if group.leads:
        sides["one"] = learner_of(Group(only_leader), data, _platform())
    steps = {name: _endless(learner) for name, learner in sides.items()}
    rounds: dict[str, list[Round]] = {"two": [], "one": []}
    for _ in range(1 + ROUNDS):
        for name, done in rounds.items():
            group.barrier()
            if name in sides:
                done.append(_round(sides[name], steps[name]))
    group.barrier()
    one, two = rounds["one"][1:], rounds["two"][1:]  # without the round to warm up
    # The worker that has computed longer: how long a round takes on cores that nobody else uses.
    longer = group.gather(torch.tensor([[each.cpu for each in two]])).amax(0).tolist()
    if not group.leads:
        return {}
    return {
        **ratios("speedup_2_workers", [each.wall for each in one], [each.wall for each in two]),
        **ratios("speedup_2_workers_cpu", [each.cpu for each in one], longer),
        **spread("tokens_per_s_2_workers", [each.tokens / each.wall for each in two], 0),
        **spread("tokens_per_s_1_worker", [each.tokens / each.wall for each in one], 0),
        "tokens_per_step": round(two[0].tokens / STEPS),
        "vector_bytes_per_step": round(_vector_bytes(next(steps["two"]), sides["two"])),
        "dense_bytes_per_step": sides["two"].reduction.moved,
        "sharded_load_average_1min": round(os.getloadavg()[0], 2),
    }


@dataclass(frozen=True)
class Round:
    """:data:`STEPS` steps: seconds by the clock, seconds of computing, tokens of all workers."""

    wall: float
    cpu: float
    tokens: int


def _round(learner: ShardedLearner, steps: Iterator[Step]) -> Round:
    begun, used, tokens = time.perf_counter(), time.process_time(), 0
    for step in itertools.islice(steps, STEPS):
        learner.step(step)
        tokens += step.batch.tokens
    return Round(time.perf_counter() - begun, time.process_time() - used, tokens)


def _endless(learner: ShardedLearner) -> Iterator[Step]:
    while True:
        yield from learner.batches(learner.workspace.dataset.window(WINDOW))


def _vector_bytes(step: Step, learner: ShardedLearner) -> int:
    """What this worker gets of vectors in a step and sends of their gradients; ids are 8 bytes a row beside it.

    Of data-parallel tables only gradients travel.
    """
    ids, total = step.batch.ids, 0
    for table in ids.keys():  # noqa: SIM118 - no dict
        rows = ids[table].values().numpy()
        for piece in learner.tables.pieces:
            if piece.table == table and piece.worker != learner.group.rank:
                asked = int(((rows >= piece.row) & (rows < piece.row + piece.rows)).sum())
                ways = 1 if piece.kind == DATA_PARALLEL else 2
                total += asked * (ways * 4 * piece.columns + 8)
    return total


def _curves(data: Path) -> Values:
    """Losses of :data:`CURVE` steps on two workers against those on one, in the same logical shards."""
    whole = {"shards": SHARDS, "deterministic": True}
    one, two = (start(count, _curve, data, whole)[0] for count in (1, 2))
    values: Values = {
        "deterministic_bit_equal": float(one == two),
        "curve_steps": CURVE,
        "curve_last_loss": round(one["losses"][-1], 5),
    }
    for name, sharding in CURVES.items():
        found = start(2, _curve, data, {"shards": SHARDS, **sharding})[0]["losses"]
        differences = [abs(a - b) / abs(b) for a, b in zip(found, one["losses"], strict=True)]
        values[f"loss_diff.{name}"] = float(f"{max(differences):.2e}")
        values[f"mean_loss_diff.{name}"] = float(f"{sum(found) / sum(one['losses']) - 1:.2e}")
    return values


def _curve(group: Group, data: Path, sharding: dict[str, Any]) -> dict[str, Any]:
    learner = learner_of(group, data, _platform(), **sharding)
    steps = _endless(learner)
    losses = [learner.step(next(steps))["train_loss"] for _ in range(CURVE)]
    return {"losses": losses, "digest": hypercast.tensors.digest(learner.state_dict().get("model", {}))}


def _checkpoints(folder: Path) -> Values:
    """Whether what two workers saved after three windows ends, on one and on three, in the bits of no interruption."""
    outcomes = []
    for count in (1, 3):
        run = folder / f"resumed-{count}"
        start(2, _windows, folder / "tiny", run, 3)
        outcomes.append(start(count, _windows, folder / "tiny", run, 5)[0])
    whole = start(2, _windows, folder / "tiny", folder / "whole", 5)[0]
    return {"resume_reshard_ok": float(all(outcome == whole for outcome in outcomes))}


def _windows(group: Group, data: Path, run: Path, windows: int) -> str:
    config = _small(default=128)
    learner = learner_of(group, data, config, shards=6, deterministic=True)
    with _unpublished(learner):
        trainer = ShardedTrainer(config=config.trainer, learner=learner, checkpoints=run, group=group)
        for window in learner.workspace.dataset.windows[:windows]:
            trainer.run_window(window)
    return hypercast.tensors.digest(learner.state_dict().get("model", {}))


@contextmanager
def _unpublished(learner: ShardedLearner) -> Iterator[None]:
    """Windows are trained on, and nothing is published or released."""
    learner.evaluate = lambda window: {}  # type: ignore[method-assign]
    learner.finish = lambda window: {}  # type: ignore[method-assign]
    yield


def _budget(folder: Path) -> Values:
    """A table of 65,536 rows under a budget that holds half of it: refused in one piece, trained in two."""
    mebibytes = 0.75 * 65536 * 4 * (8 + 1) / 2**20
    sharding = {"shards": 2, "memory_mib": mebibytes}
    try:
        start(2, _table, folder / "tiny", {**sharding, "kinds": ["table_wise"]})
        refused = False
    except WorkerFailed as error:
        refused = "sharding.memory_mib" in str(error)
    largest = max(start(2, _table, folder / "tiny", {**sharding, "kinds": ["row_wise"]}))
    return {
        "table_over_budget_trains": float(refused and largest <= mebibytes),
        "table_mib": round(65536 * 4 * 9 / 2**20, 2),
        "budget_mib": round(mebibytes, 2),
    }


def _table(group: Group, data: Path, sharding: dict[str, Any]) -> float:
    """MiB of this worker's pieces, after a window of training."""
    learner = learner_of(group, data, _small(default=128, item_id=65536), **sharding)
    for step in learner.batches(learner.workspace.dataset.windows[0]):
        learner.step(step)
    return sum(piece.bytes for piece in learner.tables.pieces if piece.worker == group.rank) / 2**20


def _small(*, default: int, **rows: int) -> FoundationLearner.Config:
    vocabulary = BatchVocabulary.Config(default=default, rows=rows)
    model = FoundationModel.Config(width=8, representation=8, tower=16, history=16, vocabulary=vocabulary)
    return FoundationLearner.Config(batch_size=40, model=model)
