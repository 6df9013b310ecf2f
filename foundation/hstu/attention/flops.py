"""How much HSTU attention computes: the pairs of tokens that see each other, no others."""

import torch
from torch import Tensor


def seen_pairs(
    lengths: Tensor, num_targets: Tensor, contextual_len: int, max_distance: int | None, full_tail: int
) -> int:
    """How many pairs of tokens the mask of :mod:`foundation.hstu.attention.semantics` lets through, over all sequences.

    Args:
        lengths, num_targets: int64 ``[B]``.
    """
    total = 0
    for length, targets in zip(lengths.tolist(), num_targets.tolist(), strict=True):
        history_end = length - targets
        context = min(contextual_len, history_end)
        position = torch.arange(context, length).clamp(max=history_end)
        seen = torch.where(position < history_end, position + 1, history_end) - context
        if max_distance is not None:
            limited = (position < history_end - full_tail) | (full_tail == 0)
            near = torch.where(position < history_end, max_distance + 1, max_distance)
            seen = torch.where(limited, seen.minimum(near), seen)
        total += context * length + int(seen.sum()) + targets
    return total


def attention_flops(
    products: int,
    q_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    num_targets: Tensor,
    contextual_len: int,
    max_distance: int | None,
    full_tail: int,
) -> int:
    """Floating-point operations of ``products`` products over all seen pairs: 2 forward, 5 backward.

    Those of width D (queries and keys) and of width V (values) are taken as equally many.
    """
    pairs = seen_pairs(offsets.diff(), num_targets, contextual_len, max_distance, full_tail)
    return products * pairs * q_THD.shape[1] * (q_THD.shape[2] + v_THV.shape[2])
