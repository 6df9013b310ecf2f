"""Target attention over a short history: the light sequence module of an expert.

Shape legend: B requests, C candidates, M the most of one request, L history tokens, K the longest history, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypercast.training.random import normal_start
from streaming.batch import History

DAY = 86_400_000_000
"""Microseconds."""
AGE_BUCKETS = 16


class TargetAttention(nn.Module):
    """Each candidate weighs its request's events by ``SiLU(q k^T / sqrt(D) + age bias) / K``, as one HSTU row does."""

    def __init__(self, *, width: int, length: int, actions: int, surfaces: int) -> None:
        super().__init__()
        self.length = length
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.action = nn.Embedding(actions, width)
        self.surface = nn.Embedding(surfaces + 1, width)
        self.age_bias = nn.Parameter(torch.zeros(AGE_BUCKETS))
        normal_start(self.action.weight, 0.02)
        normal_start(self.surface.weight, 0.02)

    def forward(
        self, candidate_CD: Tensor, item_UD: Tensor, history: History, owner_C: Tensor, time_B: Tensor
    ) -> Tensor:
        """Float ``[C, D]``; zeros for a request without history."""
        count_B = history.offsets.diff()
        if not len(history.item_L) or not len(owner_C):
            return torch.zeros_like(candidate_CD)
        event_LD = item_UD[history.item_L] + self.action(history.action_L) + self.surface(history.surface_L + 1)
        owner_L = torch.arange(len(count_B)).repeat_interleave(count_B)
        days_L = (time_B[owner_L] - history.time_L).double() / DAY
        bucket_L = (days_L * 24).log1p().mul(1.5).long().clamp(max=AGE_BUCKETS - 1)
        # The padding's keys, values and biases are zeros, and so its weights SiLU(0) are.
        events, candidates = Padding.of(owner_L, len(count_B)), Padding.of(owner_C, len(count_B))
        key_value_BKE = events.pad(self.key_value(event_LD))
        key_BKD, value_BKD = key_value_BKE.chunk(2, dim=2)
        bias_BK1 = events.pad(F.embedding(bucket_L, self.age_bias[:, None]))
        query_BMD = candidates.pad(self.query(candidate_CD) * candidate_CD.shape[1] ** -0.5)
        scores_BMK = torch.baddbmm(bias_BK1.transpose(1, 2), query_BMD, key_BKD.transpose(1, 2))
        weights_BMK = F.silu(scores_BMK) / self.length
        return candidates.unpad(weights_BMK @ value_BKD)


@dataclass(frozen=True)
class Padding:
    """Where rows of B owners, one owner's after the other's, lie in ``[B, longest]``."""

    owners: int
    longest: int
    place_N: Tensor

    @staticmethod
    def of(owner_N: Tensor, owners: int) -> "Padding":
        """``owner_N``: int64 in ascending order, at least one."""
        count_B = owner_N.bincount(minlength=owners)
        longest = int(count_B.max())
        first_B = count_B.cumsum(0) - count_B
        return Padding(owners, longest, owner_N * longest + torch.arange(len(owner_N)) - first_B[owner_N])

    def pad(self, row_ND: Tensor) -> Tensor:
        """``[B, longest, D]``, zeros where there is nothing."""
        zeros = row_ND.new_zeros(self.owners * self.longest, row_ND.shape[1])
        return zeros.index_copy(0, self.place_N, row_ND).view(self.owners, self.longest, -1)

    def unpad(self, row_BKD: Tensor) -> Tensor:
        """``[N, D]``, the inverse of :meth:`pad`."""
        return row_BKD.flatten(0, 1).index_select(0, self.place_N)
