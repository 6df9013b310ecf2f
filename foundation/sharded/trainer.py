"""The one train loop, with checkpoints that all workers write together."""

from pathlib import Path
from typing import cast

from foundation.sharded.group import Group
from foundation.sharded.steps import ShardedLearner, Step
from hypercast.training import checkpoint, distributed_checkpoint
from hypercast.training.loop import ContinualTrainer
from streaming.dataset import Window


class ShardedTrainer(ContinualTrainer[Step]):
    """Every worker runs it, in step; a restart may be on another number of workers.

    Args:
        checkpoints: a folder that all workers see.
    """

    def __init__(
        self,
        *,
        config: ContinualTrainer.Config,
        learner: ShardedLearner,
        checkpoints: Path,
        group: Group,
    ) -> None:
        self.group = group
        super().__init__(config=config, learner=learner, checkpoints=checkpoints)

    def _save(self, window: Window) -> None:
        learner = cast(ShardedLearner, self.learner)
        state = {"learner": learner.facts(), "metrics": {str(index): values for index, values in self.metrics.items()}}
        distributed_checkpoint.save(
            self.checkpoints,
            tensors=learner.tensors(),
            state=state,
            step=window.index,
            group=self.group.process_group,
        )

    def _resume(self) -> None:
        state = checkpoint.state(self.checkpoints)
        cast(ShardedLearner, self.learner).restore(
            state["learner"],
            lambda tensors: distributed_checkpoint.load(self.checkpoints, into=tensors, group=self.group.process_group),
        )
        self.metrics = {int(index): values for index, values in state["metrics"].items()}
