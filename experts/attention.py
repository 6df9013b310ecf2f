"""Target attention over a short history: the light sequence module of an expert.

Shape legend: C candidates, L history tokens, K the longest history kept, D width.
"""

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
        longest = int(count_B.max()) if len(count_B) else 0
        if longest == 0:
            return torch.zeros_like(candidate_CD)
        event_LD = item_UD[history.item_L] + self.action(history.action_L) + self.surface(history.surface_L + 1)
        owner_L = torch.arange(len(count_B)).repeat_interleave(count_B)
        days_L = (time_B[owner_L] - history.time_L).double() / DAY
        bucket_L = (days_L * 24).log1p().mul(1.5).long().clamp(max=AGE_BUCKETS - 1)
        token_BK = history.offsets[:-1, None] + torch.arange(longest)
        present_BK = token_BK < history.offsets[1:, None]
        token_BK = token_BK.clamp(max=max(len(event_LD) - 1, 0))
        key_LD, value_LD = self.key_value(event_LD).chunk(2, dim=1)
        # Padded to the longest of a few dozen events; the engine's jagged attention pays off only on long histories.
        key_BKD, value_BKD = key_LD[token_BK], value_LD[token_BK]
        bias_BK = self.age_bias[bucket_L][token_BK]
        scores_CK = torch.einsum("cd,ckd->ck", self.query(candidate_CD), key_BKD[owner_C])
        scores_CK = scores_CK * candidate_CD.shape[1] ** -0.5 + bias_BK[owner_C]
        weights_CK = F.silu(scores_CK) * (present_BK[owner_C] / self.length)
        return torch.einsum("ck,ckd->cd", weights_CK, value_BKD[owner_C])
