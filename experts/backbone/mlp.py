"""A plain multi-layer perceptron."""

from itertools import pairwise

import pydantic
from torch import Tensor, nn

from streaming.config import Config as BaseConfig


class MLP(nn.Module):
    """Linear layers with SiLU between them."""

    class Config(BaseConfig):
        """Attributes: ``hidden``, widths of the layers, the last being what the heads read."""

        hidden: list[int] = pydantic.Field(default=[64, 32], min_length=1)

        def build(self, *, width: int) -> "MLP":
            return MLP(config=self, width=width)

    def __init__(self, *, config: Config, width: int) -> None:
        super().__init__()
        widths = [width, *config.hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = nn.SiLU()
        self.width = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[C, width]`` to float ``[C, hidden[-1]]``."""
        for layer in self.layers:
            x = self.activation(layer(x))
        return x
