"""Attention as it is defined: one pair of tokens at a time, in float64, written apart from all that it is to judge."""

import math

import torch
from torch import Tensor

from tests.foundation.hstu.attention.cases import SECOND, Case


def sees(query: int, key: int, *, length: int, targets: int, given: Case) -> bool:
    """The definition of the mask, one pair of tokens of one sequence at a time."""
    first_target = length - targets
    context = min(given.context, first_target)
    if key < context or query == key:
        return True  # context is seen by everyone, and each token by itself
    if query < context or key > query or key >= first_target:
        return False  # context sees context only; history is causal; a target is seen by itself only
    if given.max_distance is None:
        return True
    if given.full_tail > 0 and query >= first_target - given.full_tail:
        return True
    return min(query, first_target) - key <= given.max_distance


def naive(given: Case) -> Tensor:
    """The definition of attention, one pair of tokens at a time, in float64."""
    q, k, v = given.q.double(), given.k.double(), given.v.double()
    scale = 1 / math.sqrt(q.shape[2]) if given.scale is None else given.scale
    rows, start = [], 0
    for size, targets in zip(given.sizes, given.targets, strict=True):
        for i in range(size):
            total = torch.zeros_like(v[start])
            for j in range(size):
                if sees(i, j, length=size, targets=targets, given=given):
                    score = (q[start + i] * k[start + j]).sum(-1) * scale
                    score = score + _bias(given, start, i, j, first_target=size - targets)
                    total = total + (score / (1 + torch.exp(-score)) / given.divisor)[:, None] * v[start + j]
            rows.append(total)
        start += size
    return torch.stack(rows) if rows else torch.zeros_like(v)


def _bias(given: Case, start: int, i: int, j: int, *, first_target: int) -> Tensor | float:
    bias: Tensor | float = 0.0
    if given.position_bias is not None:
        # All targets stand at the position right after the history.
        distance = max(0, min(i, first_target) - min(j, first_target))
        bias = bias + given.position_bias.double()[min(distance, len(given.position_bias) - 1)]
    if given.time_bias is not None:
        seconds = abs(int(given.time[start + i]) - int(given.time[start + j])) / SECOND
        bucket = int(math.log(max(1.0, seconds)) / 0.301)
        bias = bias + given.time_bias.double()[min(bucket, len(given.time_bias) - 1)]
    return bias
