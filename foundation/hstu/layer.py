"""The HSTU layer (arXiv 2402.17152, section 3; equations 1 to 3).

Shape legend: T tokens of all sequences, D model width, H heads.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.hstu.attention.dispatch import hstu_attention
from hypercast.training.random import normal_start
from streaming.config import Config as BaseConfig


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """How jagged tokens form sequences; what attention needs beside the tokens.

    Attributes:
        offsets: int64 ``[B + 1]``.
        num_targets: int64 ``[B]``, targets at each sequence's end.
        contextual_len: context tokens at each sequence's start.
        timestamps: int64 microseconds ``[T]``.
        max_seq_len: the divisor N of the attention weights.
    """

    offsets: Tensor
    num_targets: Tensor
    contextual_len: int
    timestamps: Tensor
    max_seq_len: int


class HSTULayer(nn.Module):
    """``U, V, Q, K = split(SiLU(f1(norm(x))))``; ``y = f2(norm(A V) * U) + x``."""

    def __init__(self, *, width: int, heads: int, positions: int, time_buckets: int, dropout: nn.Module) -> None:
        super().__init__()
        self.heads = heads
        self.norm_input = nn.LayerNorm(width)
        self.project = nn.Linear(width, 4 * width)
        self.norm_output = nn.LayerNorm(width)
        self.output = nn.Linear(width, width)
        self.position_bias = nn.Parameter(torch.zeros(positions))
        self.time_bias = nn.Parameter(torch.zeros(time_buckets))
        normal_start(self.position_bias, 0.02)
        normal_start(self.time_bias, 0.02)
        self.dropout = dropout

    def forward(self, x_TD: Tensor, sequences: Sequences) -> Tensor:
        """Float ``[T, D]`` to float ``[T, D]``."""
        tokens, width = x_TD.shape
        u_TD, v_TD, q_TD, k_TD = F.silu(self.project(self.norm_input(x_TD))).split(width, dim=1)
        by_head = (tokens, self.heads, width // self.heads)
        attended = hstu_attention(
            q_TD.reshape(by_head),
            k_TD.reshape(by_head),
            v_TD.reshape(by_head),
            sequences.offsets,
            max_seq_len=sequences.max_seq_len,
            num_targets=sequences.num_targets,
            contextual_len=sequences.contextual_len,
            position_bias=self.position_bias,
            time_bias=self.time_bias,
            timestamps=sequences.timestamps,
        )
        return self.output(self.dropout(self.norm_output(attended.reshape(tokens, width)) * u_TD)) + x_TD


class HSTUStack(nn.Module):
    """HSTU layers one above the other, with a final LayerNorm."""

    class Config(BaseConfig):
        """Attributes: ``layers``; ``heads``; ``time_buckets``, each a step of 0.301 in the logarithm of seconds."""

        layers: int = 2
        heads: int = 2
        time_buckets: int = 64

    def __init__(self, config: Config, *, width: int, positions: int, dropouts: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            HSTULayer(
                width=width,
                heads=config.heads,
                positions=positions,
                time_buckets=config.time_buckets,
                dropout=dropout,
            )
            for dropout in dropouts
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x_TD: Tensor, sequences: Sequences) -> Tensor:
        """Float ``[T, D]`` to float ``[T, D]``."""
        for layer in self.layers:
            x_TD = layer(x_TD, sequences)
        return self.norm(x_TD)
