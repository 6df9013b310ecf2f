"""Sequence encoders that predict the next item: HSTU as the platform ships it, and what it is held against.

Shape legend: T tokens of all sequences, B sequences, N the longest of them, D model width, H heads, I items.
"""

from typing import Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sequential.sequences import Batch
from benchmarks.sequential.softmax_hstu import SoftmaxHSTUStack
from benchmarks.sequential.transformer import TransformerStack
from foundation.hstu.layer import HSTUStack, Sequences
from hypercast.training.random import NamedDropout, initialise_, normal_start
from streaming.config import Config as BaseConfig


class SequenceEncoder(nn.Module):
    """Item embeddings (scaled by the root of the width) plus learned positions, a stack of layers, unit vectors.

    Args:
        items: I, size of the catalogue.
        length: N, the longest sequence.
        seed: of initial values and dropout.
    """

    class Config(BaseConfig):
        """Attributes:

        kind: of the layers: HSTU, HSTU with softmax for its pointwise attention, or SASRec.
        width: D.
        layers, heads: how many.
        dropout: of the input and inside every layer.
        time_buckets: of HSTU's bias by time; 0 where there are no times.
        """

        kind: Literal["hstu", "softmax_hstu", "sasrec"] = "hstu"
        width: int = pydantic.Field(default=50, ge=1)
        layers: int = pydantic.Field(default=2, ge=1)
        heads: int = pydantic.Field(default=1, ge=1)
        dropout: float = pydantic.Field(default=0.2, ge=0.0, lt=1.0)
        time_buckets: int = pydantic.Field(default=0, ge=0)

        def build(self, *, items: int, length: int, seed: int) -> "SequenceEncoder":
            return SequenceEncoder(config=self, items=items, length=length, seed=seed)

    def __init__(self, *, config: Config, items: int, length: int, seed: int) -> None:
        super().__init__()

        def dropout(name: str) -> NamedDropout:
            return NamedDropout(config.dropout, seed=seed, name=f"encoder/{name}")

        self.length = length
        self.scale = config.width**0.5
        self.item = nn.Embedding(items, config.width)
        self.position = nn.Embedding(length, config.width)
        self.dropout = dropout("input")
        normal_start(self.item.weight, 0.02)
        normal_start(self.position.weight, config.width**-0.5)
        dropouts: list[nn.Module] = [dropout(f"layer{index}") for index in range(config.layers)]
        if config.kind == "sasrec":
            self.stack: nn.Module = TransformerStack(width=config.width, heads=config.heads, dropouts=dropouts)
        else:
            stack = HSTUStack.Config(layers=config.layers, heads=config.heads, time_buckets=config.time_buckets)
            of_kind = HSTUStack if config.kind == "hstu" else SoftmaxHSTUStack
            self.stack = of_kind(stack, width=config.width, positions=length, dropouts=dropouts)
        initialise_(self, seed)

    def forward(self, batch: Batch) -> Tensor:
        """What follows each token, as a unit vector: float ``[T, D]``."""
        x_TD = self.item(batch.item_T) * self.scale + self.position(batch.position_T)
        sequences = Sequences(
            offsets=batch.offsets,
            num_targets=torch.zeros(len(batch.offsets) - 1, dtype=torch.int64),
            contextual_len=0,
            timestamps=batch.time_T,
            max_seq_len=self.length,
        )
        return F.normalize(self.stack(self.dropout(x_TD), sequences), dim=1)

    def catalogue(self) -> Tensor:
        """All items as unit vectors, float ``[I, D]``."""
        return F.normalize(self.item.weight, dim=1)
