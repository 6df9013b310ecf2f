"""The plain backbone: a multi-layer perceptron on all parts side by side.

Shape legend: C candidates, H output width.
"""

from typing import Literal

import pydantic
from torch import Tensor

from experts.backbone.mlp import MLP
from experts.backbone.parts import Parts, Shapes
from streaming.config import Config as BaseConfig


class Plain(MLP):
    """What every other backbone is measured against."""

    class Config(BaseConfig):  # type: ignore[override]
        """``{kind: mlp}``. Attributes: ``hidden``, widths of the layers, the last being what the heads read."""

        kind: Literal["mlp"] = "mlp"
        hidden: list[int] = pydantic.Field(default=[64, 32], min_length=1)

        def build(self, shapes: Shapes) -> "Plain":
            return Plain(config=self, shapes=shapes)

    def __init__(self, *, config: Config, shapes: Shapes) -> None:
        super().__init__(config=MLP.Config(hidden=config.hidden), width=shapes.width)

    def forward(self, parts: Parts) -> Tensor:  # type: ignore[override]
        """Float ``[C, H]``."""
        return super().forward(parts.flat)
