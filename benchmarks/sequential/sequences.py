"""Sequences of items in one jagged array, and the batches that a model reads of them.

Shape legend: S sequences, E events of all sequences, B sequences of a batch, T tokens of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Index = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tokens of B sequences, one after the other, each with the item that follows it.

    Attributes:
        item_T: int64 ``[T]``, what the model reads.
        target_T: int64 ``[T]``, the next item of the same sequence.
        position_T: int64 ``[T]``, 0 at each sequence's first token.
        time_T: int64 microseconds ``[T]``; zeros where the data has no times.
        offsets: int64 ``[B + 1]``.
    """

    item_T: Tensor
    target_T: Tensor
    position_T: Tensor
    time_T: Tensor
    offsets: Tensor

    @property
    def last_B(self) -> Tensor:
        """Where each sequence's last token is, int64 ``[B]``."""
        return self.offsets[1:] - 1


@dataclass(frozen=True, kw_only=True)
class ItemSequences:
    """Items of S sequences in the order in which they happened.

    Attributes:
        item_E: int64 ``[E]``, item ids from 0 to ``items - 1``.
        time_E: int64 microseconds ``[E]``, or None if the data has no times.
        offsets: int64 ``[S + 1]``.
        items: size of the catalogue.
    """

    item_E: Index
    time_E: Index | None
    offsets: Index
    items: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def split(self, first: int) -> tuple["ItemSequences", "ItemSequences"]:
        """The first sequences, so many, and the others."""
        return self._part(0, first), self._part(first, len(self))

    def _part(self, first: int, end: int) -> "ItemSequences":
        events = slice(self.offsets[first], self.offsets[end])
        return ItemSequences(
            item_E=self.item_E[events],
            time_E=None if self.time_E is None else self.time_E[events],
            offsets=self.offsets[first : end + 1] - self.offsets[first],
            items=self.items,
        )

    def batch(self, rows: Index, *, length: int, held_out: int) -> Batch:
        """The sequences ``rows`` without their last ``held_out`` events: every token but the last predicts the next,
        at most ``length`` tokens, the latest ones.
        """
        end = self.offsets[rows + 1] - held_out - 1
        start = np.maximum(self.offsets[rows], end - length)
        lengths = np.maximum(end - start, 0)
        offsets = np.concatenate([[0], lengths.cumsum()])
        position = np.arange(offsets[-1]) - offsets[:-1].repeat(lengths)
        event = start.repeat(lengths) + position
        time = np.zeros_like(event) if self.time_E is None else self.time_E[event]
        return Batch(
            item_T=torch.from_numpy(self.item_E[event]),
            target_T=torch.from_numpy(self.item_E[event + 1]),
            position_T=torch.from_numpy(position),
            time_T=torch.from_numpy(time),
            offsets=torch.from_numpy(offsets),
        )

    def batches(self, order: Index, *, size: int, length: int, held_out: int) -> Iterator[Batch]:
        """Batches of ``size`` sequences in the given order; the last may be smaller."""
        for first in range(0, len(order), size):
            yield self.batch(order[first : first + size], length=length, held_out=held_out)
