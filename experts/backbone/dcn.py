"""DCN V2: crosses of bounded degree beside or below a deep tower (arXiv 2008.13535, sections 3.1 to 3.3).

Shape legend: C candidates, E input width, H output width, R rank.
"""

from typing import Literal

import pydantic
import torch
from torch import Tensor, nn

from experts.backbone.mlp import MLP
from experts.backbone.parts import Parts, Shapes
from streaming.config import Config as BaseConfig


class Cross(nn.Module):
    """One cross layer, ``x0 * (W x + b) + x``: raises the degree of a polynomial in ``x0`` by one.

    Args:
        width: E.
        rank: R, where ``W`` is the product of an ``[E, R]`` and an ``[R, E]`` matrix; None for a full one.
    """

    def __init__(self, *, width: int, rank: int | None = None) -> None:
        super().__init__()
        self.narrow = None if rank is None else nn.Linear(width, rank, bias=False)
        self.expand = nn.Linear(width if rank is None else rank, width)

    def forward(self, first_CE: Tensor, x_CE: Tensor) -> Tensor:
        """Float ``[C, E]`` from the network's input ``first_CE`` and the layer's, ``x_CE``."""
        narrow = x_CE if self.narrow is None else self.narrow(x_CE)
        return first_CE * self.expand(narrow) + x_CE


class DCNv2(nn.Module):
    """Cross layers and a tower, one after the other or side by side."""

    class Config(BaseConfig):
        """``{kind: dcn}``. Attributes:

        crosses: number of cross layers; polynomials of the parts up to degree ``crosses + 1``.
        rank: of each layer's matrix; null for a full one.
        structure: ``stacked``: the tower reads the crosses; ``parallel``: both read the parts and both are given out.
        hidden: widths of the tower's layers.
        """

        kind: Literal["dcn"] = "dcn"
        crosses: int = pydantic.Field(default=2, ge=1)
        rank: int | None = pydantic.Field(default=None, ge=1)
        structure: Literal["stacked", "parallel"] = "stacked"
        hidden: list[int] = pydantic.Field(default=[64, 32], min_length=1)

        def build(self, shapes: Shapes) -> "DCNv2":
            return DCNv2(config=self, shapes=shapes)

    def __init__(self, *, config: Config, shapes: Shapes) -> None:
        super().__init__()
        self.parallel = config.structure == "parallel"
        self.crosses = nn.ModuleList(Cross(width=shapes.width, rank=config.rank) for _ in range(config.crosses))
        self.tower = MLP.Config(hidden=config.hidden).build(width=shapes.width)
        self.width = self.tower.width + (shapes.width if self.parallel else 0)

    def forward(self, parts: Parts) -> Tensor:
        """Float ``[C, H]``; in parallel, the crosses come first."""
        first_CE = crossed_CE = parts.flat
        for cross in self.crosses:
            crossed_CE = cross(first_CE, crossed_CE)
        if self.parallel:
            return torch.cat([crossed_CE, self.tower(first_CE)], dim=1)
        return self.tower(crossed_CE)
