"""Training on Ray: a worker is killed, and the run ends with the same bits; one process goes on from there."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch.distributed as dist

import hypercast.tensors
from foundation.sharded.group import Group
from hypercast.errors import CheckpointError
from hypercast.registry import Registry
from hypercast.runtime import sharded
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import FoundationJob
from hypercast.store.tae_log import TaeLog
from hypercast.training import checkpoint
from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.errors import ConfigError

WINDOWS = 4


def platform_of(folder: Path, dataset: Dataset, **sharding: object) -> PlatformConfig:
    path = folder / "platform.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""
name: tiny
dataset: {{path: {dataset.path}}}
run: {folder / "run"}
windows: {WINDOWS}
foundation:
  batch_size: 40
  model: {{width: 8, representation: 6, tower: 12, history: 10, vocabulary: {{default: 16}}}}
  sharding: {json.dumps({"workers": 2, "shards": 4, "deterministic": True, **sharding})}
"""
    )
    return configuration.load(path, PlatformConfig)


class Killer:
    """Kills any one of the workers after each of the first windows, the one that leads among them."""

    def __init__(self) -> None:
        self.killed: set[int] = set()
        self._at = [0.25, 0.5, 0.75]
        self._random = random.Random(0)

    def __call__(self, _: str, share: float) -> None:
        if self._at and share >= self._at[0]:
            alive = sorted(set(_workers()) - self.killed)
            if alive:
                os.kill(victim := self._random.choice(alive), signal.SIGKILL)
                self.killed.add(victim)
                self._at.pop(0)


def _workers() -> list[int]:
    """Processes of Ray Train's workers that descend from this one."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid, name in names.items() if name.startswith("ray::") and "TrainWorker" in name and ours(pid)]


def by_hand(config: PlatformConfig, store: Path) -> None:
    """What one worker of Ray Train does, without Ray."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    try:
        job = sharded.ShardedFoundationJob(config, config.run, Group())
        for window in job.workspace.dataset.windows[:WINDOWS]:
            job.publish(window.index)
            job.run_window(window.index)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_killed_workers_come_back_and_end_with_the_same_bits(tmp_path: Path, tiny_dataset: Dataset) -> None:
    """The other run is of one worker, in this process, and nobody dies in it; what experts read is the same too."""
    killer = Killer()
    config = platform_of(tmp_path / "killed", tiny_dataset, max_failures=4)
    said = sharded.train(config, killer)
    assert len(killer.killed) == 3 and said["snapshot"] == f"FM@{WINDOWS + 1:04d}"
    alone = sharded.with_workers(platform_of(tmp_path / "alone", tiny_dataset), 1)
    by_hand(alone, tmp_path / "store")
    snapshots = [Registry(each.run / "registry").list("FM") for each in (config, alone)]
    assert [len(each) for each in snapshots] == [4, 4]  # as many as are kept
    digests = [[hypercast.tensors.digest(one.load()) for one in each] for each in snapshots]
    assert digests[0] == digests[1]
    logs = [TaeLog.Config().build(each.run / "tae_log") for each in (config, alone)]
    windows = tiny_dataset.windows[:WINDOWS]
    for number, window in enumerate(windows, start=1):
        ours, theirs = (log.find(f"FM@{number:04d}", window.index) for log in logs)
        assert ours is not None and theirs is not None and ours.table.equals(theirs.table)
    plan = json.loads((config.run / sharded.PLAN_FILE).read_text())
    assert len(plan["bytes_by_worker"]) == 2 and {piece["worker"] for piece in plan["pieces"]} == {0, 1}
    # One process finds every window done, and stands where the workers stood.
    job = FoundationJob(config, config.run)
    assert job.trainer.cursor == windows[-1].index
    for window in windows:
        job.publish(window.index)
        assert job.run_window(window.index)["train_loss"] > 0
    model = job.learner.model.state_dict()
    assert model["table.weight"].any() and job.publisher.released == said["snapshot"]


def test_workers_must_share_the_shards_evenly(tmp_path: Path, tiny_dataset: Dataset) -> None:
    config = platform_of(tmp_path, tiny_dataset)
    with pytest.raises(ConfigError, match=r"--workers 3: .* Give shards: 6"):
        sharded.with_workers(config, 3)
    four = sharded.with_workers(config, 4).foundation.sharding
    assert four is not None and (four.workers, four.shards) == (4, 4)
    assert sharded.with_workers(config, None) == config


def test_tables_that_do_not_fit_are_refused_before_any_worker_starts(tmp_path: Path, tiny_dataset: Dataset) -> None:
    config = platform_of(tmp_path, tiny_dataset, memory_mib=0.001)
    with pytest.raises(ConfigError, match=r"sharding\.memory_mib: 0\.001 a worker .* on 2 workers"):
        sharded.train(config, lambda message, share: None)
    pieces = sharded.planned(platform_of(tmp_path, tiny_dataset))
    assert {piece.worker for piece in pieces} == {0, 1}


def test_a_run_that_one_process_is_ahead_of_is_refused(tmp_path: Path, tiny_dataset: Dataset) -> None:
    config = platform_of(tmp_path, tiny_dataset)
    checkpoint.save(config.run / "checkpoints" / "foundation", tensors={}, state={})
    with pytest.raises(CheckpointError, match="one process has trained"):
        sharded.train(config, lambda message, share: None)
    checkpoint.save(config.run / "checkpoints" / "foundation_sharded", tensors={}, state={}, step=1)
    checkpoint.save(config.run / "checkpoints" / "foundation", tensors={}, state={}, step=2)
    with pytest.raises(CheckpointError, match="one process has trained"):
        sharded.train(config, lambda message, share: None)
