"""HSTU attention, the obvious way: one sequence after the other, plain PyTorch. The truth for other backends.

Any floating dtype, any device; autograd derives the gradients, of any order. Memory grows with the square of lengths.

Shape legend: T tokens of all sequences, H heads, D width of queries and keys, V width of values, n tokens of one
sequence, m of them with queries (all but the stored ones).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.hstu.attention.semantics import attention_mask, sequence_positions, time_buckets


def hstu_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    *,
    max_seq_len: int,
    num_targets: Tensor | None = None,
    contextual_len: int = 0,
    max_distance: int | None = None,
    full_tail: int = 0,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    timestamps: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See :func:`foundation.hstu.attention.dispatch.hstu_attention`, which documents the signature."""
    lengths = offsets.diff().tolist()
    scale = q_THD.shape[-1] ** -0.5 if scale is None else scale
    targets_B = [0] * len(lengths) if num_targets is None else num_targets.tolist()
    times = [None] * len(lengths) if timestamps is None else timestamps.split(lengths)
    outputs = []
    # split, not slices: the backward of a slice fills a tensor of the size of the whole batch.
    sequences = zip(q_THD.split(lengths), k_THD.split(lengths), v_THV.split(lengths), times, targets_B, strict=True)
    for q_mHD, k_nHD, v_nHV, time_n, targets in sequences:
        length = len(k_nHD)
        mask_nn = attention_mask(length, targets, contextual_len, max_distance, full_tail).to(q_THD.device)
        bias_nn = _bias(length, targets, position_bias, time_bias, time_n, first_row=0)
        outputs.append(_attend(q_mHD, k_nHD, v_nHV, mask_nn, bias_nn, scale=scale, divisor=max_seq_len))
    return torch.cat(outputs) if outputs else torch.zeros_like(v_THV)


def hstu_attention_cached(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    k_cache_SHD: Tensor,
    v_cache_SHV: Tensor,
    cache_offsets: Tensor,
    *,
    max_seq_len: int,
    num_targets: Tensor | None = None,
    contextual_len: int = 0,
    max_distance: int | None = None,
    full_tail: int = 0,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    timestamps: Tensor | None = None,
    cache_timestamps: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See :func:`foundation.hstu.attention.dispatch.hstu_attention_cached`, which documents the signature."""
    new, stored = offsets.diff().tolist(), cache_offsets.diff().tolist()
    scale = q_THD.shape[-1] ** -0.5 if scale is None else scale
    targets_B = [0] * len(new) if num_targets is None else num_targets.tolist()
    keys = zip(k_cache_SHD.split(stored), k_THD.split(new), strict=True)
    values = zip(v_cache_SHV.split(stored), v_THV.split(new), strict=True)
    times: list[Tensor | None] = [None] * len(new)
    if timestamps is not None and cache_timestamps is not None:
        pairs = zip(cache_timestamps.split(stored), timestamps.split(new), strict=True)
        times = [torch.cat(pair) for pair in pairs]
    outputs = []
    for q_mHD, k_pair, v_pair, time_n, targets in zip(q_THD.split(new), keys, values, times, targets_B, strict=True):
        k_nHD, v_nHV = torch.cat(k_pair), torch.cat(v_pair)
        length, first = len(k_nHD), len(k_pair[0])
        mask_mn = attention_mask(length, targets, contextual_len, max_distance, full_tail)[first:].to(q_THD.device)
        bias_mn = _bias(length, targets, position_bias, time_bias, time_n, first_row=first)
        outputs.append(_attend(q_mHD, k_nHD, v_nHV, mask_mn, bias_mn, scale=scale, divisor=max_seq_len))
    return torch.cat(outputs) if outputs else torch.zeros_like(v_THV)


def _attend(
    q_mHD: Tensor, k_nHD: Tensor, v_nHV: Tensor, mask_mn: Tensor, bias_mn: Tensor | None, *, scale: float, divisor: int
) -> Tensor:
    scores_Hmn = torch.einsum("ihd,jhd->hij", q_mHD, k_nHD) * scale
    if bias_mn is not None:
        scores_Hmn = scores_Hmn + bias_mn
    weights_Hmn = F.silu(scores_Hmn) * (mask_mn.to(scores_Hmn.dtype) / divisor)
    return torch.einsum("hij,jhd->ihd", weights_Hmn.to(v_nHV.dtype), v_nHV)


def _bias(
    length: int,
    targets: int,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    time_n: Tensor | None,
    *,
    first_row: int,
) -> Tensor | None:
    """What is added to the scores of rows from ``first_row`` on, shared by the heads; None without biases."""
    bias_mn = None
    if position_bias is not None:
        position = sequence_positions(length, targets).to(position_bias.device)
        distance = (position[first_row:, None] - position[None, :]).clamp(0, len(position_bias) - 1)
        bias_mn = TableGather.apply(position_bias, distance)
    if time_bias is not None and time_n is not None:
        by_time = TableGather.apply(time_bias, time_buckets(time_n[first_row:], time_n, count=len(time_bias)))
        bias_mn = by_time if bias_mn is None else bias_mn + by_time
    return bias_mn


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
