"""DHEN: stacked ensembles of heterogeneous interactions (arXiv 2203.11014, section 3).

Shape legend: C candidates, N tokens (one a part), D their width, K interactions of a layer, H output width.
"""

from typing import Literal

import pydantic
import torch
from torch import Tensor, nn

from experts.backbone.interactions import CrossTokens, DeepTokens, DotProducts, LinearTokens, SelfAttention
from experts.backbone.mlp import MLP
from experts.backbone.parts import Parts, Shapes
from streaming.config import Config as BaseConfig

Interaction = Literal["attention", "cross", "linear", "dot", "mlp"]
INTERACTIONS = {
    "attention": SelfAttention,
    "cross": CrossTokens,
    "linear": LinearTokens,
    "dot": DotProducts,
    "mlp": DeepTokens,
}


class DHENLayer(nn.Module):
    """``Norm(ensemble of interactions(x) + x)``: each interaction sees the whole input, the shortcut is the identity.

    Args:
        concat: a linear map brings the interactions' tokens, one after the other, back to N; else they are averaged.
    """

    def __init__(self, *, tokens: int, width: int, heads: int, interactions: list[Interaction], concat: bool) -> None:
        super().__init__()
        self.interactions = nn.ModuleList(
            INTERACTIONS[name](tokens=tokens, width=width, heads=heads) for name in interactions
        )
        # No bias: it would add one number to all of a token, which the norm takes away again.
        self.mix = nn.Linear(len(interactions) * tokens, tokens, bias=False) if concat else None
        self.norm = nn.LayerNorm(width)

    def forward(self, x_CND: Tensor) -> Tensor:
        """Float ``[C, N, D]``."""
        seen = [interaction(x_CND) for interaction in self.interactions]
        if self.mix is None:
            ensemble_CND = torch.stack(seen).mean(0)
        else:
            ensemble_CND = self.mix(torch.cat(seen, dim=1).transpose(1, 2)).transpose(1, 2)
        return self.norm(ensemble_CND + x_CND)


class DHEN(nn.Module):
    """A token a part, layers of ensembles, and a tower on their output."""

    class Config(BaseConfig):
        """``{kind: dhen}``. Attributes:

        layers: how many; the paper gains up to 8.
        width: D of the tokens, a multiple of ``heads``.
        heads: of the interaction ``attention``.
        interactions: of every layer; a kind that is listed twice is there twice.
        ensemble: how their outputs become one: ``sum`` (averaged, so that depth of the list changes no scale) or
            ``concat`` and a linear map.
        hidden: widths of the layers of the tower.
        """

        kind: Literal["dhen"] = "dhen"
        layers: int = pydantic.Field(default=2, ge=1)
        width: int = pydantic.Field(default=16, ge=1)
        heads: int = pydantic.Field(default=2, ge=1)
        interactions: list[Interaction] = pydantic.Field(default=["attention", "cross", "linear", "dot"], min_length=1)
        ensemble: Literal["sum", "concat"] = "sum"
        hidden: list[int] = pydantic.Field(default=[64, 32], min_length=1)

        @pydantic.model_validator(mode="after")
        def _heads_divide_width(self) -> "DHEN.Config":
            if self.width % self.heads:
                raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
            return self

        def build(self, shapes: Shapes) -> "DHEN":
            return DHEN(config=self, shapes=shapes)

    def __init__(self, *, config: Config, shapes: Shapes) -> None:
        super().__init__()
        # By name, so that an arm with one part more starts the others' projections from the same values.
        self.project = nn.ModuleDict(
            {name: nn.Linear(width, config.width) for name, width in shapes.fields.items() if width}
        )
        tokens = len(self.project)
        self.layers = nn.ModuleList(
            DHENLayer(
                tokens=tokens,
                width=config.width,
                heads=config.heads,
                interactions=config.interactions,
                concat=config.ensemble == "concat",
            )
            for _ in range(config.layers)
        )
        self.tower = MLP.Config(hidden=config.hidden).build(width=tokens * config.width)
        self.width = self.tower.width

    def forward(self, parts: Parts) -> Tensor:
        """Float ``[C, H]``."""
        x_CND = torch.stack([project(parts.fields[name]) for name, project in self.project.items()], dim=1)
        for layer in self.layers:
            x_CND = layer(x_CND)
        return self.tower(x_CND.flatten(1))
