"""Joining jagged sequences: token rows of several sequences one after the other, with their offsets.

Shape legend: B sequences, S tokens of the first half of each, T tokens of the second.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def offsets_of(lengths: Tensor) -> Tensor:
    """int64 ``[B]`` to int64 ``[B + 1]``, from 0."""
    return F.pad(lengths.cumsum(0), (1, 0))


@dataclass(frozen=True, kw_only=True)
class Join:
    """Where tokens go when each sequence is followed by its own continuation.

    Attributes:
        offsets: int64 ``[B + 1]``, of the joined sequences.
        first_S, second_T: int64, the places of either half among the S + T joined tokens.
    """

    offsets: Tensor
    first_S: Tensor
    second_T: Tensor

    @staticmethod
    def of(first: Tensor, second: Tensor) -> "Join":
        """Of two int64 offsets ``[B + 1]``; the second half's tokens follow the first's, sequence by sequence."""
        lengths_first, lengths_second = first.diff(), second.diff()
        # A token moves back by all tokens of the other half that now stand before it.
        shift_S = second[:-1].repeat_interleave(lengths_first)
        shift_T = first[1:].repeat_interleave(lengths_second)
        return Join(
            offsets=first + second,
            first_S=torch.arange(len(shift_S), device=first.device) + shift_S,
            second_T=torch.arange(len(shift_T), device=first.device) + shift_T,
        )

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Rows ``[S, ...]`` and ``[T, ...]`` to ``[S + T, ...]``; differentiable."""
        joined = first.new_empty((len(self.first_S) + len(self.second_T), *first.shape[1:]))
        return joined.index_copy(0, self.first_S, first).index_copy(0, self.second_T, second)
