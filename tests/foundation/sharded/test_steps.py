"""One worker against one process: the same vocabulary, draws and averages, and losses but for the order of sums."""

from pathlib import Path

import pytest
import torch

import hypercast.tensors
from foundation.publish import Publisher
from foundation.sharded.group import Group
from foundation.sharded.steps import ShardedLearner
from foundation.sharded.trainer import ShardedTrainer
from foundation.steps import FoundationLearner
from hypercast.errors import CheckpointError
from hypercast.training import checkpoint
from hypercast.training.loop import ContinualTrainer
from streaming.dataset import Dataset
from streaming.workspace import Workspace
from tests.foundation.sharded.workers import Recorded, Setting, learner_of


def setting_of(run: Path, dataset: Dataset, rows: int = 16, **sharding: object) -> Setting:
    return Setting(run=run, data=dataset.path, sharding=dict(sharding), windows=3, rows=rows)


def process_of(setting: Setting, workspace: Workspace) -> FoundationLearner:
    config = setting.config(1)
    publisher = setting.publisher(workspace, config)
    return FoundationLearner(config=config, workspace=workspace, publisher=publisher, seed=0)


def trained(learner: FoundationLearner, trainer: ContinualTrainer, windows: int) -> list[float]:
    recorded = Recorded(learner)
    for window in learner.workspace.dataset.windows[:windows]:
        trainer.run_window(window)
    return recorded.losses


def trainer_of(learner: ShardedLearner, run: Path, group: Group) -> ShardedTrainer:
    return ShardedTrainer(
        config=ContinualTrainer.Config(), learner=learner, checkpoints=run / "checkpoints", group=group
    )


def test_one_worker_learns_as_one_process_does(
    alone: Group, tmp_path: Path, tiny_dataset: Dataset, workspace: Workspace
) -> None:
    """Tables are small, so that rows change hands; one logical shard, so that dropout draws the same."""
    sharded = learner_of(alone, setting_of(tmp_path / "a", tiny_dataset))
    plain = process_of(setting_of(tmp_path / "b", tiny_dataset), workspace)
    losses = trained(sharded, trainer_of(sharded, tmp_path / "a", alone), 3)
    reference = trained(
        plain, ContinualTrainer(config=ContinualTrainer.Config(), learner=plain, checkpoints=tmp_path / "b" / "c"), 3
    )
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(reference), rtol=1e-5, atol=0.0)
    ours, theirs = sharded.state_dict(), plain.state_dict()
    assert any(key.endswith("counters") and each[1] for key, each in ours["model"].items())  # some were evicted
    for name, tensor in theirs["model"].items():
        if "vocabulary" in name or "numbers" in name:
            assert torch.equal(ours["model"][name], tensor), name
        else:
            torch.testing.assert_close(ours["model"][name], tensor, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        ours["optimiser"]["sparse"]["squares"], theirs["optimiser"]["sparse"]["squares"], rtol=1e-3, atol=1e-10
    )
    assert ours["dropout"] == theirs["dropout"] and ours["released"] == theirs["released"]


def test_a_process_goes_on_from_what_workers_hand_over(
    alone: Group, tmp_path: Path, tiny_dataset: Dataset, workspace: Workspace
) -> None:
    sharded = learner_of(alone, setting_of(tmp_path / "a", tiny_dataset, shards=2))
    trained(sharded, trainer_of(sharded, tmp_path / "a", alone), 2)
    process = process_of(setting_of(tmp_path / "a", tiny_dataset), workspace)
    tensors, skeleton = checkpoint.pack(sharded.state_dict())
    process.load_state_dict(checkpoint.unpack(tensors, skeleton))
    loaded, packed = checkpoint.pack(process.state_dict())
    assert packed == skeleton and hypercast.tensors.digest(loaded) == hypercast.tensors.digest(tensors)
    window = workspace.dataset.windows[2]
    expected, found = (
        [learner.step(batch)["train_loss"] for batch in learner.batches(window)] for learner in (sharded, process)
    )
    assert found[0] == pytest.approx(expected[0], rel=0.2) and len(found) == len(expected)


@pytest.mark.parametrize("dense", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_a_checkpoint_is_everything(alone: Group, tmp_path: Path, tiny_dataset: Dataset, dense: str) -> None:
    """A learner that read one goes on to the same bits, draws of dropout and evictions included."""
    setting = setting_of(tmp_path, tiny_dataset, shards=2, dense=dense)
    first = learner_of(alone, setting)
    trained(first, trainer_of(first, tmp_path, alone), 2)
    second = learner_of(alone, setting)
    trainer = trainer_of(second, tmp_path, alone)
    assert trainer.cursor == first.workspace.dataset.windows[1].index and trainer.metrics
    window = first.workspace.dataset.windows[2]
    expected, found = (
        [learner.step(batch)["train_loss"] for batch in learner.batches(window)] for learner in (first, second)
    )
    assert found == expected and found
    ours, theirs = (checkpoint.pack(learner.state_dict())[0] for learner in (second, first))
    assert hypercast.tensors.digest(ours) == hypercast.tensors.digest(theirs)


def test_another_models_checkpoint_is_refused(alone: Group, tmp_path: Path, tiny_dataset: Dataset) -> None:
    first = learner_of(alone, setting_of(tmp_path, tiny_dataset, rows=16))
    trained(first, trainer_of(first, tmp_path, alone), 1)
    second = learner_of(alone, setting_of(tmp_path, tiny_dataset, rows=32))
    with pytest.raises(CheckpointError, match="another shape of 'buffer/vocabulary"):
        trainer_of(second, tmp_path, alone)


def test_snapshots_carry_their_windows_ends(alone: Group, tmp_path: Path, tiny_dataset: Dataset) -> None:
    """No event that a snapshot has learned from is later than its watermark (law L3)."""
    learner = learner_of(alone, setting_of(tmp_path, tiny_dataset))
    windows = learner.workspace.dataset.windows
    trained(learner, trainer_of(learner, tmp_path, alone), 2)
    publisher = learner.publishing
    assert isinstance(publisher, Publisher)
    marks = [snapshot.watermark for snapshot in publisher.registry.list("FM")]
    assert marks == [windows[0].start, windows[0].end, windows[1].end]


def test_the_configuration_says_how_many_workers_there_are(
    alone: Group, tmp_path: Path, tiny_dataset: Dataset, workspace: Workspace
) -> None:
    config = setting_of(tmp_path, tiny_dataset).config(2)
    with pytest.raises(ValueError, match=r"sharding.workers is 2, and 1 workers have come"):
        ShardedLearner(config=config, workspace=workspace, publisher=None, seed=0, group=alone)
