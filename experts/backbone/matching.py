"""Hard matching: how often a candidate's attributes occurred among the events before its request.

Shape legend: C candidates, L events, U distinct items, A item attributes.
"""

import torch
from torch import Tensor

from experts.backbone.parts import Past
from streaming.catalogue import UNKNOWN


def match_counts(past: Past) -> Tensor:
    """For each candidate and attribute, the request's events whose item has the same value: int64 ``[C, A]``.

    An unknown value equals nothing, not even another unknown. Time and memory are linear in events and candidates, up
    to a logarithm.
    """
    history = past.history
    owner_L = torch.arange(len(history.offsets) - 1).repeat_interleave(history.offsets.diff())
    counts = []
    for code_U in past.code_UA.unbind(1):
        values, rank_U = code_U.unique(return_inverse=True)
        event_L, _ = (owner_L * len(values) + rank_U[history.item_L]).sort()
        wanted_C = past.owner_C * len(values) + rank_U[past.item_C]
        count_C = torch.searchsorted(event_L, wanted_C, right=True) - torch.searchsorted(event_L, wanted_C)
        counts.append(torch.where(code_U[past.item_C] == UNKNOWN, 0, count_C))
    return torch.stack(counts, dim=1)
