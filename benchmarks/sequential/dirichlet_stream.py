"""A synthetic stream of records drawn from Dirichlet processes, over ids that come into being.

After HSTU (arXiv 2402.17152, section 4.1.1), whose text can be read in two ways: what a record comes back to is either
a category, of which it then takes any item, or an item. Only the second agrees with the hit rates published: where
categories come back, no list of ten can reach what the weakest model there has (:meth:`LastItems.ceiling`).

Everything about the last item of each record but itself is known, so that hit rates can be had in expectation over it,
and the best that can be had too.

Shape legend: R records, L items of a record, K categories of a record, N items of a list, I items of the catalogue.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.sequential.sequences import Index, ItemSequences
from hypercast.training.random import stream_seed

Real = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LastItems:
    """How the last items of records are distributed, given the items before them and how these were drawn.

    Attributes:
        category_I: category of each item, int64 ``[I]``.
        own_RK: categories that the record may have, int64 ``[R, K]``, each once.
        count_RK: available items of each, int64 ``[R, K]``; all are equally likely.
        chance_RK: of each category, float64 ``[R, K]``; less than 1 together where an earlier item may come back.
        limit_R: ids below it are available, int64 ``[R]``.
        earlier_RL: items before the last, int64 ``[R, L - 1]``.
        again_R: chance of each of them to come back, float64 ``[R]``.
    """

    category_I: Index
    own_RK: Index
    count_RK: Index
    chance_RK: Real
    limit_R: Index
    earlier_RL: Index
    again_R: Real

    def after(self, first: int) -> "LastItems":
        """Those of all records but the first, so many."""
        return replace(
            self,
            own_RK=self.own_RK[first:],
            count_RK=self.count_RK[first:],
            chance_RK=self.chance_RK[first:],
            limit_R=self.limit_R[first:],
            earlier_RL=self.earlier_RL[first:],
            again_R=self.again_R[first:],
        )

    def hit_rate(self, item_RN: Index) -> float:
        """Chance that a record's last item is in its list of different items: HR@N, in expectation over last items."""
        hits = [self._chance_N(record, items).sum() for record, items in enumerate(item_RN)]
        return float(np.mean(hits))

    def ceiling(self, at: int) -> float:
        """The :meth:`hit_rate` of the best lists of ``at`` items."""
        return float(np.mean([self._best(record, at) for record in range(len(self.limit_R))]))

    def _chance_N(self, record: int, item_N: Index) -> Real:
        """Of each item to be the last."""
        own_NK = self.category_I[item_N][:, None] == self.own_RK[record]
        fresh_N = own_NK @ (self.chance_RK[record] / self.count_RK[record]) * (item_N < self.limit_R[record])
        times_N = (self.earlier_RL[record][:, None] == item_N).sum(axis=0)
        return fresh_N + self.again_R[record] * times_N

    def _best(self, record: int, at: int) -> float:
        seen_N = np.unique(self.earlier_RL[record])
        seen_K = (self.category_I[seen_N][:, None] == self.own_RK[record]).sum(axis=0)
        unseen_K = (self.count_RK[record] - seen_K).clip(0, at)
        fresh = (self.chance_RK[record] / self.count_RK[record]).repeat(unseen_K)
        chances = np.concatenate([self._chance_N(record, seen_N), fresh])
        return float(np.sort(chances)[-at:].sum())


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The constants of the paper's stream.

    Attributes:
        items: ids, each in one category at random.
        categories: of the catalogue; ``per_record``, at most, of a record.
        available: share of the ids that can occur in the first record; it grows evenly to all of them in the last.
        most_alpha: a record's concentration is uniform between 1 and this.
        repeats: what comes back from earlier in a record, see the module.
    """

    items: int = 20_000
    categories: int = 100
    per_record: int = 5
    available: float = 0.4
    most_alpha: float = 500.0
    repeats: Literal["item", "category"] = "item"

    def draw(self, records: int, *, length: int, seed: int) -> tuple[ItemSequences, LastItems]:
        """Records in the order of the stream, and how their last items are distributed.

        Position n (from 1) is drawn anew with probability ``alpha / (alpha + n - 1)``: a category from the record's
        prior, and any available item of it. Else a random earlier position's item comes back, or its category.
        """
        random = np.random.default_rng(stream_seed(seed, "dirichlet"))
        category_I = random.integers(self.categories, size=self.items)
        # Keys of items by category, then id: those of a category below a limit are one range.
        keys = np.sort(category_I * self.items + np.arange(self.items))
        limit_R = (self.items * np.linspace(self.available, 1.0, records)).astype(np.int64)
        alpha_R = random.uniform(1.0, self.most_alpha, size=records)
        own_RK = random.random((records, self.categories)).argpartition(self.per_record, axis=1)[:, : self.per_record]
        random.permuted(own_RK, axis=1, out=own_RK)
        prior_RK = random.exponential(size=own_RK.shape)
        prior_RK *= np.arange(self.per_record) < random.integers(1, self.per_record + 1, size=records)[:, None]
        prior_RK /= prior_RK.sum(axis=1, keepdims=True)
        first_RK = np.searchsorted(keys, own_RK * self.items)
        count_RK = np.searchsorted(keys, own_RK * self.items + limit_R[:, None]) - first_RK
        if not count_RK.all():
            raise ValueError(f"a category has none of the first {limit_R[0]} items; take more items")
        source_RL = _sources(alpha_R, length=length, random=random)
        draw_RL = np.take_along_axis(_categories(prior_RK, length=length, random=random), source_RL, axis=1)
        first_RL = np.take_along_axis(first_RK, draw_RL, axis=1)
        count_RL = np.take_along_axis(count_RK, draw_RL, axis=1)
        item_RL = keys[first_RL + (random.random(count_RL.shape) * count_RL).astype(np.int64)] % self.items
        if self.repeats == "item":
            item_RL = np.take_along_axis(item_RL, source_RL, axis=1)
        data = ItemSequences(
            item_E=item_RL.ravel(),
            time_E=None,
            offsets=np.arange(records + 1, dtype=np.int64) * length,
            items=self.items,
        )
        again_R = 1.0 / (alpha_R + length - 1)
        chance_RK = alpha_R[:, None] * prior_RK * again_R[:, None]
        if self.repeats == "category":
            chance_RK += (draw_RL[:, :-1, None] == np.arange(self.per_record)).sum(axis=1) * again_R[:, None]
            again_R = np.zeros(records)
        last = LastItems(
            category_I=category_I,
            own_RK=own_RK,
            count_RK=count_RK,
            chance_RK=chance_RK,
            limit_R=limit_R,
            earlier_RL=item_RL[:, :-1],
            again_R=again_R,
        )
        return data, last


def _categories(prior_RK: Real, *, length: int, random: np.random.Generator) -> Index:
    """A draw from the record's prior for every position, int64 ``[R, L]``."""
    cumulative_RK = prior_RK.cumsum(axis=1)
    draw_RL = np.empty((len(prior_RK), length), dtype=np.int64)
    for position in range(length):
        draw_RL[:, position] = (random.random(len(prior_RK))[:, None] > cumulative_RK[:, :-1]).sum(axis=1)
    return draw_RL


def _sources(alpha_R: Real, *, length: int, random: np.random.Generator) -> Index:
    """The position that each one repeats, int64 ``[R, L]``: itself where it is drawn anew."""
    source_RL = np.zeros((len(alpha_R), length), dtype=np.int64)
    for position in range(1, length):
        earlier_R = source_RL[np.arange(len(alpha_R)), random.integers(position, size=len(alpha_R))]
        anew_R = random.random(len(alpha_R)) < alpha_R / (alpha_R + position)
        source_RL[:, position] = np.where(anew_R, position, earlier_R)
    return source_RL
