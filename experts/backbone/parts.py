"""What a backbone reads: a candidate's features as named parts, and the events before its request.

Shape legend: B requests, C candidates, L events, U distinct items, A item attributes (the id is the first), D width of
embeddings, E width of all parts together.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from streaming.batch import History, RequestBatch
from streaming.inputs import Inputs

CANDIDATE = "candidate"
"""Name of the part with the candidate's embedding, ``[C, D]``."""
CONTEXT = "context"
"""Name of the part with the request's side, user and context: ``[C, D]``."""


@dataclass(frozen=True, kw_only=True)
class Past:
    """The events before each request, for backbones that attend to them by themselves.

    Attributes:
        item_UD: float, embeddings of the batch's distinct items.
        code_UA: int64, codes of their attributes, see :mod:`streaming.catalogue`.
        history: events of each request, oldest first; their items are rows of the two above.
        item_C: int64, likewise.
        owner_C: int64, ascending: each candidate's request.
        offsets: int64 ``[B + 1]``, where each request's candidates begin.
        time_B: int64 microseconds.
    """

    item_UD: Tensor
    code_UA: Tensor
    history: History
    item_C: Tensor
    owner_C: Tensor
    offsets: Tensor
    time_B: Tensor

    @staticmethod
    def of(batch: RequestBatch, item_UD: Tensor, *, history: str) -> "Past":
        """The past of ``batch`` by the history of that name; reads none of its labels (law L6)."""
        return Past(
            item_UD=item_UD,
            code_UA=batch.items.values().view(len(batch.items.keys()), batch.items.stride()).T,
            history=batch.history[history],
            item_C=batch.item_C,
            owner_C=batch.owner_C,
            offsets=batch.offsets,
            time_B=batch.time_B,
        )


@dataclass(frozen=True, kw_only=True)
class Parts:
    """All that is known of C candidates.

    Attributes:
        fields: float ``[C, width]`` by name, in the order of :attr:`Shapes.fields`.
        past: what came before.
    """

    fields: Mapping[str, Tensor]
    past: Past

    @property
    def flat(self) -> Tensor:
        """All fields side by side, float ``[C, E]``."""
        return torch.cat(list(self.fields.values()), dim=1)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What a backbone is built for.

    Attributes:
        fields: width of each field by name, in order; a data set without dense features has one of width 0.
        history: the largest number of events in :class:`Past`.
        inputs: of the data set.
    """

    fields: Mapping[str, int]
    history: int
    inputs: Inputs

    @property
    def width(self) -> int:
        """E."""
        return sum(self.fields.values())
