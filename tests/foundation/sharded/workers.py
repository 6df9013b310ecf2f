"""What workers of a test do: a small training on the tiny data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypercast.tensors
from foundation.hstu.layer import HSTUStack
from foundation.hstu.vocabulary import BatchVocabulary
from foundation.model import FoundationModel
from foundation.publish import Publisher
from foundation.sharded.config import Sharding
from foundation.sharded.group import Group
from foundation.sharded.steps import ShardedLearner
from foundation.sharded.trainer import ShardedTrainer
from foundation.steps import FoundationLearner
from hypercast.registry import Registry
from hypercast.store.tae_log import TaeLog
from hypercast.training.loop import ContinualTrainer
from streaming.dataset import Dataset
from streaming.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A training: where, of what, how."""

    run: Path
    data: Path
    sharding: dict[str, Any]
    windows: int
    dropout: float = 0.1
    batch_size: int = 40
    rows: int = 128

    def config(self, workers: int) -> FoundationLearner.Config:
        return FoundationLearner.Config(
            batch_size=self.batch_size,
            model=FoundationModel.Config(
                width=8,
                representation=6,
                tower=12,
                history=10,
                dropout=self.dropout,
                stack=HSTUStack.Config(layers=2, heads=2, time_buckets=32),
                vocabulary=BatchVocabulary.Config(default=self.rows),
            ),
            sharding=Sharding(workers=workers, **self.sharding),
        )

    def publisher(self, workspace: Workspace, config: FoundationLearner.Config) -> Publisher:
        return Publisher(
            config=config.publisher,
            model=config.model,
            workspace=workspace,
            registry=Registry(self.run / "registry"),
            log=TaeLog.Config().build(self.run / "log"),
        )


def learner_of(group: Group, setting: Setting) -> ShardedLearner:
    workspace = Workspace(Dataset.open(setting.data))
    config = setting.config(group.size)
    publisher = setting.publisher(workspace, config) if group.leads else None
    return ShardedLearner(config=config, workspace=workspace, publisher=publisher, seed=0, group=group)


def train(group: Group, setting: Setting) -> dict[str, Any]:
    """Run the windows; goes on from a checkpoint. Returns losses, metrics, and the digest of the last snapshot."""
    learner = learner_of(group, setting)
    recorded = Recorded(learner)
    trainer = ShardedTrainer(
        config=ContinualTrainer.Config(),
        learner=learner,
        checkpoints=setting.run / "checkpoints",
        group=group,
    )
    begun = trainer.cursor
    for window in learner.workspace.dataset.windows[: setting.windows]:
        trainer.run_window(window)
    result = {
        "losses": recorded.losses,
        "metrics": trainer.metrics,
        "begun": begun,
        "kinds": {piece.table: piece.kind for piece in learner.tables.pieces},
        "bytes": [sum(p.bytes for p in learner.tables.pieces if p.worker == rank) for rank in range(group.size)],
    }
    if group.leads:
        latest = Registry(setting.run / "registry").list("FM")[-1]
        result |= {"digest": hypercast.tensors.digest(latest.load()), "snapshot": latest.name}
    return result


class Recorded:
    """Keeps the loss of every step of a learner."""

    def __init__(self, learner: FoundationLearner) -> None:
        self.losses: list[float] = []
        self._step = learner.step
        learner.step = self  # type: ignore[method-assign, assignment]

    def __call__(self, batch: Any) -> Any:
        said = self._step(batch)
        self.losses.append(said["train_loss"])
        return said
