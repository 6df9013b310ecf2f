"""How a foundation embedding enters an expert.

Shape legend: C candidates, R width of the foundation embedding, E width of the expert's own features, O output width.
"""

from dataclasses import dataclass

import pydantic
import torch
from torch import Tensor, nn

from hypercast.training.random import NamedDropout
from streaming.config import Config as BaseConfig


@dataclass(frozen=True, kw_only=True)
class TeacherFeatures:
    """What the foundation model logged about each candidate; constants to the expert, no gradient goes back.

    Attributes:
        vector_CR: float32, zeros where absent.
        logit_CT: float32, zeros where absent.
        present_C: float32, 1 where the log had a usable row.
    """

    vector_CR: Tensor
    logit_CT: Tensor
    present_C: Tensor


class GatedFusion(nn.Module):
    """LayerNorm and dropout on the embedding, a projection, and a gate that reads both sides.

    ``out = sigmoid(W_g [tae, own]) * W tae``, masked where the embedding is absent (arXiv 2508.02929 normalises and
    drops out the embedding; the gate is ours).
    """

    class Config(BaseConfig):
        """Attributes: ``width`` of the output; ``dropout`` on the embedding."""

        width: int = 32
        dropout: float = pydantic.Field(default=0.1, ge=0.0, lt=1.0)

        def build(self, *, embedding: int, own: int, seed: int, name: str) -> "GatedFusion":
            return GatedFusion(config=self, embedding=embedding, own=own, seed=seed, name=name)

    def __init__(self, *, config: Config, embedding: int, own: int, seed: int, name: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embedding)
        self.dropout = NamedDropout(config.dropout, seed=seed, name=name)
        self.project = nn.Linear(embedding, config.width)
        self.gate = nn.Linear(config.width + own, config.width)
        self.width = config.width

    def forward(self, teacher: TeacherFeatures, own_CE: Tensor) -> Tensor:
        """Float ``[C, O]``."""
        projected_CO = self.project(self.dropout(self.norm(teacher.vector_CR)))
        gate_CO = torch.sigmoid(self.gate(torch.cat([projected_CO, own_CE], dim=1)))
        return gate_CO * projected_CO * teacher.present_C[:, None]
