"""How a foundation embedding enters an expert.

Shape legend: C candidates, R width of the foundation embedding, E width of the expert's own features, O output width,
K tokens that an embedding is read as, T tasks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pydantic
import torch
from torch import Tensor, nn

from hypercast.training.random import NamedDropout
from streaming.config import Config as BaseConfig

TOKENS = 4
"""K: what cross attention tells apart in one embedding."""


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """One vector a candidate.

    Attributes:
        vector_CR: float32, zeros where absent.
        present_C: float32, 1 where there is one.
    """

    vector_CR: Tensor
    present_C: Tensor


@dataclass(frozen=True, kw_only=True)
class TeacherFeatures:
    """What the foundation model logged about each candidate; constants to the expert, no gradient goes back.

    Attributes:
        vectors: by name of the representation.
        logit_CT: float32, zeros where absent.
        present_C: float32, 1 where the log had a usable row.
    """

    vectors: Mapping[str, Vectors]
    logit_CT: Tensor
    present_C: Tensor

    def __getitem__(self, rows: slice) -> "TeacherFeatures":
        """Those candidates' part."""
        vectors = {
            name: Vectors(vector_CR=each.vector_CR[rows], present_C=each.present_C[rows])
            for name, each in self.vectors.items()
        }
        return TeacherFeatures(vectors=vectors, logit_CT=self.logit_CT[rows], present_C=self.present_C[rows])

    @staticmethod
    def joined(parts: Sequence["TeacherFeatures"]) -> "TeacherFeatures":
        """Of the candidates of all parts, one part after the other; at least one."""
        vectors = {
            name: Vectors(
                vector_CR=torch.cat([part.vectors[name].vector_CR for part in parts]),
                present_C=torch.cat([part.vectors[name].present_C for part in parts]),
            )
            for name in parts[0].vectors
        }
        return TeacherFeatures(
            vectors=vectors,
            logit_CT=torch.cat([part.logit_CT for part in parts]),
            present_C=torch.cat([part.present_C for part in parts]),
        )


class Fusion(nn.Module, ABC):
    """LayerNorm and dropout on the embedding, then what the kind makes of it; zeros where the embedding is absent.

    Normalisation and dropout are those of arXiv 2508.02929; it does not say how the rest is done.
    """

    class Config(BaseConfig):
        """Attributes: ``kind``, one of ``gate``, ``concat`` and ``cross_attention``; ``width`` of the output;
        ``dropout`` on the embedding.
        """

        kind: Literal["gate", "concat", "cross_attention"] = "gate"
        width: int = pydantic.Field(default=32, ge=1)
        dropout: float = pydantic.Field(default=0.1, ge=0.0, lt=1.0)

        def build(self, *, embedding: int, own: int, seed: int, name: str) -> "Fusion":
            kinds: dict[str, Callable[..., Fusion]] = {
                "gate": GatedFusion,
                "concat": ConcatFusion,
                "cross_attention": CrossAttentionFusion,
            }
            return kinds[self.kind](config=self, embedding=embedding, own=own, seed=seed, name=name)

    def __init__(self, *, config: Config, embedding: int, own: int, seed: int, name: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embedding)
        self.dropout = NamedDropout(config.dropout, seed=seed, name=name)
        self.width = config.width

    def forward(self, given: Vectors, own_CE: Tensor) -> Tensor:
        """Float ``[C, O]``."""
        return self.fuse(self.dropout(self.norm(given.vector_CR)), own_CE) * given.present_C[:, None]

    @abstractmethod
    def fuse(self, vector_CR: Tensor, own_CE: Tensor) -> Tensor:
        """Float ``[C, O]`` from the normalised embedding and the expert's own features."""


class ConcatFusion(Fusion):
    """A projection alone, for the backbone to read beside the expert's own features."""

    def __init__(self, *, config: Fusion.Config, embedding: int, own: int, seed: int, name: str) -> None:
        super().__init__(config=config, embedding=embedding, own=own, seed=seed, name=name)
        self.project = nn.Linear(embedding, config.width)

    def fuse(self, vector_CR: Tensor, own_CE: Tensor) -> Tensor:
        return self.project(vector_CR)


class GatedFusion(Fusion):
    """A projection, and a gate that reads both sides: ``sigmoid(W_g [tae, own]) * W tae``."""

    def __init__(self, *, config: Fusion.Config, embedding: int, own: int, seed: int, name: str) -> None:
        super().__init__(config=config, embedding=embedding, own=own, seed=seed, name=name)
        self.project = nn.Linear(embedding, config.width)
        self.gate = nn.Linear(config.width + own, config.width)

    def fuse(self, vector_CR: Tensor, own_CE: Tensor) -> Tensor:
        projected_CO = self.project(vector_CR)
        gate_CO = torch.sigmoid(self.gate(torch.cat([projected_CO, own_CE], dim=1)))
        return gate_CO * projected_CO


class CrossAttentionFusion(Fusion):
    """The expert's own features ask, the embedding answers: ``softmax(q k^T / sqrt(O)) v`` over K tokens made of it."""

    def __init__(self, *, config: Fusion.Config, embedding: int, own: int, seed: int, name: str) -> None:
        super().__init__(config=config, embedding=embedding, own=own, seed=seed, name=name)
        self.query = nn.Linear(own, config.width)
        self.key_value = nn.Linear(embedding, 2 * TOKENS * config.width)

    def fuse(self, vector_CR: Tensor, own_CE: Tensor) -> Tensor:
        key_CKO, value_CKO = self.key_value(vector_CR).unflatten(1, (2, TOKENS, self.width)).unbind(1)
        score_CK = torch.einsum("co,cko->ck", self.query(own_CE), key_CKO) * self.width**-0.5
        return torch.einsum("ck,cko->co", score_CK.softmax(dim=1), value_CKO)
