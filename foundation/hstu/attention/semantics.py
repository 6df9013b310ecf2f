"""What HSTU attention means: positions, who sees whom, and buckets of time. Every backend is held against this.

Source: HSTU (arXiv 2402.17152, section 3) and its authors' code, with three choices of our own:

- Context tokens see context only (the authors let them see the whole history). What a token sees then never grows
  by later events, so the keys and values of a history can be stored and extended.
- Context is seen from any distance; ``max_distance`` limits the history that a token sees, never the context.
- All targets stand at the same position, right after the history: none comes before another.

Shape legend: n tokens of one sequence, K buckets.
"""

import math
from functools import cache

import torch
from torch import Tensor

BUCKET_STEP = 0.301
"""Width of a time bucket in the natural logarithm of seconds, as in the HSTU authors' code."""


def sequence_positions(length: int, targets: int) -> Tensor:
    """Position of each token, int64 ``[n]``. All targets share one: none comes before another (law L6)."""
    return torch.arange(length).clamp(max=length - targets)


def attention_mask(
    length: int, targets: int, contextual_len: int, max_distance: int | None = None, full_tail: int = 0
) -> Tensor:
    """Who sees whom, bool ``[n, n]`` (row sees column).

    Contextual tokens see each other; history is causal and sees the context; a target sees context, history and itself.
    With ``max_distance``, history further away than that many positions is not seen, except by the last ``full_tail``
    tokens of the history and, where ``full_tail`` is above 0, by the targets.
    """
    index = torch.arange(length)
    return sees(
        index[:, None],
        index[None, :],
        history_end=length - targets,
        contextual_len=contextual_len,
        max_distance=max_distance,
        full_tail=full_tail,
    )


def sees(
    row: Tensor, column: Tensor, *, history_end: int, contextual_len: int, max_distance: int | None, full_tail: int
) -> Tensor:
    """:func:`attention_mask` for any tokens of a sequence, given by their places in it; bool, of rows by columns.

    ``history_end`` is the place of the first target: the length of the sequence without its targets.
    """
    seen = (column < row) & (column < history_end)
    if max_distance is not None:
        position = row.clamp(max=history_end)
        near = position - column <= max_distance
        tail = (position >= history_end - full_tail) & (full_tail > 0)
        seen &= near | tail | (column < contextual_len)
    context = (row < min(contextual_len, history_end)) & (column < min(contextual_len, history_end))
    return seen | context | (row == column)


@cache
def time_thresholds(count: int) -> Tensor:
    """Where each of ``count`` time buckets but the first begins, in microseconds: float32 ``[K - 1]``, ascending.

    Bucket b begins at ``exp(0.301 b)`` seconds. All backends compare the time between two tokens, rounded to float32,
    with these same numbers, so that they agree on every bucket.
    """
    return torch.tensor([math.exp(min(BUCKET_STEP * b, 60.0)) * 1e6 for b in range(1, count)], dtype=torch.float32)


def time_buckets(rows: Tensor, columns: Tensor, *, count: int) -> Tensor:
    """Logarithmic bucket of the time between two tokens, int64 ``[len(rows), len(columns)]``.

    ``min(floor(log(max(1, seconds)) / 0.301), count - 1)``, decided by :func:`time_thresholds`.
    """
    apart = (rows[:, None] - columns[None, :]).abs().to(torch.float32)
    return torch.searchsorted(time_thresholds(count).to(apart.device), apart, right=True)
