"""Ranks of held-out items among the whole catalogue, and what is read off them.

Shape legend: S sequences, B sequences of a batch, I items, D model width.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.sequential.encoder import SequenceEncoder
from benchmarks.sequential.sequences import Batch, Index, ItemSequences

ROWS = 512
"""Sequences scored at once."""


@torch.no_grad()
def held_out_ranks(model: SequenceEncoder, data: ItemSequences, *, held_out: int) -> Index:
    """Rank, from 0, of each sequence's ``held_out``-th last item given the items before it; int64 ``[S]``.

    All items of the catalogue compete except those that the model has just read, as in the HSTU authors' code. An
    item that scores the same as the held-out one counts as ahead of it.
    """
    ranks = []
    for batch, score_BI in _scored(model, data, held_out=held_out):
        owner_T = torch.arange(len(score_BI)).repeat_interleave(batch.offsets.diff())
        score_BI[owner_T, batch.item_T] = -torch.inf
        ranks.append(rank_of(score_BI, batch.target_T[batch.last_B]))
    return torch.cat(ranks).numpy()


@torch.no_grad()
def top_items(model: SequenceEncoder, data: ItemSequences, *, held_out: int, count: int) -> Index:
    """The ``count`` items of the whole catalogue that score highest in place of each sequence's ``held_out``-th last,
    best first; int64 ``[S, count]``. Items come again here: those that the model has just read compete too.
    """
    tops = [score_BI.topk(count, dim=1).indices for _, score_BI in _scored(model, data, held_out=held_out)]
    return torch.cat(tops).numpy()


def _scored(model: SequenceEncoder, data: ItemSequences, *, held_out: int) -> Iterator[tuple[Batch, Tensor]]:
    """Batches that end before the held-out item, whose last target it is; and scores of the catalogue, ``[B, I]``."""
    model.eval()
    catalogue_ID = model.catalogue()
    for rows in np.array_split(np.arange(len(data)), -(-len(data) // ROWS)):
        batch = data.batch(rows, length=model.length, held_out=held_out - 1)
        yield batch, model(batch)[batch.last_B] @ catalogue_ID.T


def rank_of(score_BI: Tensor, item_B: Tensor) -> Tensor:
    """How many other items score at least as high as ``item_B``, int64 ``[B]``."""
    own_B1 = score_BI.gather(1, item_B[:, None])
    return (score_BI >= own_B1).sum(dim=1) - 1


def hit_rate(ranks: Index, at: int) -> float:
    """Share of ranks among the first ``at``: HR@at."""
    return float((ranks < at).mean())


def ndcg(ranks: Index, at: int) -> float:
    """Mean of ``1 / log2(rank + 2)`` over ranks among the first ``at``, 0 for others: NDCG@at for one relevant item."""
    return float(np.where(ranks < at, 1.0 / np.log2(ranks + 2.0), 0.0).mean())
