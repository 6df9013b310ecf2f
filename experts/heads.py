"""The heads of an expert: from what its backbone says to one logit a task.

Shape legend: C candidates, H width of the backbone's output, T tasks.
"""

import pydantic
import torch
from torch import Tensor, nn

from experts.backbone.mlp import MLP
from hypercast.training.random import normal_start
from streaming.config import Config as BaseConfig


class TaskHeads(nn.Module):
    """One linear map a task, each above a tower of its own where there is one.

    What a task cannot know is left out of the loss, not of the model: :func:`foundation.hstu.loss.masked_log_loss`.
    """

    class Config(BaseConfig):
        """Attributes: ``tower``, widths of the hidden layers that each task has for itself; empty for none."""

        tower: list[pydantic.PositiveInt] = []

        def build(self, *, width: int, tasks: int) -> "TaskHeads":
            return TaskHeads(config=self, width=width, tasks=tasks)

    def __init__(self, *, config: Config, width: int, tasks: int) -> None:
        """Logits start near zero, so that what is added to them (a teacher's logit) is what the expert says first."""
        super().__init__()
        self.towers = None
        if config.tower:
            self.towers = nn.ModuleList(MLP.Config(hidden=config.tower).build(width=width) for _ in range(tasks))
        self.weight = nn.Parameter(torch.empty(tasks, config.tower[-1] if config.tower else width))
        self.bias = nn.Parameter(torch.empty(tasks))
        normal_start(self.weight, 0.01)

    def forward(self, hidden_CH: Tensor) -> Tensor:
        """Float ``[C, T]``."""
        if self.towers is None:
            return nn.functional.linear(hidden_CH, self.weight, self.bias)
        read_CTH = torch.stack([tower(hidden_CH) for tower in self.towers], dim=1)
        return torch.einsum("cth,th->ct", read_CTH, self.weight) + self.bias
