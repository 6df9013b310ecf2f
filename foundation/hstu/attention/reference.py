"""HSTU attention, the obvious way: one sequence after the other, plain PyTorch. The truth for other backends.

Shape legend: T tokens of all sequences, H heads, D head width, n tokens of one sequence.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def hstu_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    offsets: Tensor,
    *,
    max_seq_len: int,
    num_targets: Tensor,
    contextual_len: int,
    position_bias: Tensor,
    time_bias: Tensor,
    timestamps: Tensor,
) -> Tensor:
    """See :func:`foundation.hstu.attention.dispatch.hstu_attention`, which documents the signature."""
    lengths = offsets.diff().tolist()
    scale = q_THD.shape[-1] ** -0.5
    outputs = []
    # split, not slices: the backward of a slice fills a tensor of the size of the whole batch.
    sequences = zip(
        q_THD.split(lengths), k_THD.split(lengths), v_THD.split(lengths), timestamps.split(lengths), strict=True
    )
    for (q_nHD, k_nHD, v_nHD, time_n), targets in zip(sequences, num_targets.tolist(), strict=True):
        length = len(time_n)
        position = sequence_positions(length, targets)
        distance = (position[:, None] - position[None, :]).clamp(0, len(position_bias) - 1)
        bucket = time_buckets(time_n, count=len(time_bias))
        bias = TableGather.apply(position_bias, distance) + TableGather.apply(time_bias, bucket)
        mask = attention_mask(length, targets, contextual_len).to(v_nHD.dtype) / max_seq_len
        scores_Hnn = torch.einsum("ihd,jhd->hij", q_nHD, k_nHD) * scale + bias
        outputs.append(torch.einsum("hij,jhd->ihd", F.silu(scores_Hnn) * mask, v_nHD))
    return torch.cat(outputs) if outputs else torch.zeros_like(v_THD)


class TableGather(torch.autograd.Function):
    """``table[index]`` for a one-dimensional table; its gradient is one histogram instead of a scattered write."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(table)
        return table[index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        total = torch.bincount(index.flatten(), weights=gradient.flatten(), minlength=ctx.size)
        return total.to(gradient.dtype), None


def sequence_positions(length: int, targets: int) -> Tensor:
    """Position of each token, int64 ``[n]``. All targets share one: none comes before another (law L6)."""
    return torch.arange(length).clamp(max=length - targets)


def attention_mask(length: int, targets: int, contextual_len: int) -> Tensor:
    """Who sees whom, bool ``[n, n]`` (row sees column).

    Contextual tokens see each other; history is causal and sees the context; a target sees context, history and itself.
    """
    index = torch.arange(length)
    causal = index[:, None] >= index[None, :]
    context = (index[:, None] < contextual_len) & (index[None, :] < contextual_len)
    other_target = (index[None, :] >= length - targets) & (index[:, None] != index[None, :])
    return (causal | context) & ~other_target


def time_buckets(timestamps: Tensor, *, count: int) -> Tensor:
    """Logarithmic bucket of the time between two tokens, int64 ``[n, n]``.

    ``floor(log(max(1, seconds)) / 0.301)`` as in the HSTU authors' code, clamped to ``count - 1``.
    """
    seconds = (timestamps[:, None] - timestamps[None, :]).abs().double() / 1e6
    return (seconds.clamp(min=1.0).log() / 0.301).long().clamp(max=count - 1)
