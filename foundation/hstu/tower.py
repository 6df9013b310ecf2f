"""The tower between what is known of a candidate and the main tasks, as experts that start from it build it again.

Shape legend: C candidates, I width of what enters, T tasks.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from streaming.config import Config as BaseConfig


class TowerShape(BaseConfig):
    """Widths. Attributes: ``inputs`` I, of what enters; ``hidden``, of its layer; ``representation``, of what the heads
    read.
    """

    inputs: int
    hidden: int
    representation: int


class Tower(nn.Module):
    """Tower and main heads of a foundation model; says nothing until it has been given such a model's weights.

    It has none of the dropout that the foundation model trains its tower with.

    Attributes: ``given`` (a buffer, so part of ``state_dict()``): whether it has been given weights.
    """

    given: Tensor

    def __init__(self, *, shape: TowerShape, tasks: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(shape.inputs, shape.hidden)
        self.representation = nn.Linear(shape.hidden, shape.representation)
        self.heads = nn.Linear(shape.representation, tasks)
        self.register_buffer("given", torch.tensor(False))

    def forward(self, input_CI: Tensor) -> Tensor:
        """Logits, float ``[C, T]``; zeros, which nothing is learned from, until weights have been given."""
        silu = nn.functional.silu
        return self.heads(silu(self.representation(silu(self.hidden(input_CI))))) * self.given

    @torch.no_grad()
    def give(self, weights: Mapping[str, Tensor]) -> None:
        """Take over tower and main heads of a foundation model's ``state_dict()``."""
        named = {"hidden": "tower.0", "representation": "tower.3", "heads": "main_heads"}
        for mine, theirs in named.items():
            layer = self.get_submodule(mine)
            for name, parameter in layer.named_parameters():
                parameter.copy_(weights[f"{theirs}.{name}"])
        self.given.fill_(True)
