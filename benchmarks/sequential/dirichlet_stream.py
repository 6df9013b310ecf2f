"""A synthetic stream of records whose items' categories follow a Dirichlet process, over ids that come into being.

After HSTU (arXiv 2402.17152, section 4.1.1). Everything about the last item of each record but itself is known, so that
hit rates can be had in expectation over it, and the best that can be had too.

Shape legend: R records, L items of a record, K categories of a record, N items of a list, I items of the catalogue.
"""

from dataclasses import dataclass

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
        chance_RK: of each category, float64 ``[R, K]``.
        limit_R: ids below it are available, int64 ``[R]``.
    """

    category_I: Index
    own_RK: Index
    count_RK: Index
    chance_RK: Real
    limit_R: Index

    def after(self, first: int) -> "LastItems":
        """Those of all records but the first, so many."""
        return LastItems(
            category_I=self.category_I,
            own_RK=self.own_RK[first:],
            count_RK=self.count_RK[first:],
            chance_RK=self.chance_RK[first:],
            limit_R=self.limit_R[first:],
        )

    def hit_rate(self, item_RN: Index) -> float:
        """Chance that a record's last item is in its list of different items: HR@N, in expectation over last items."""
        known_RNK = self.category_I[item_RN][:, :, None] == self.own_RK[:, None, :]
        available_RN = item_RN < self.limit_R[:, None]
        chance_RN = (known_RNK * (self.chance_RK / self.count_RK)[:, None, :]).sum(axis=2) * available_RN
        return float(chance_RN.sum(axis=1).mean())

    def ceiling(self, at: int) -> float:
        """The :meth:`hit_rate` of the best lists of ``at`` items: filled from the categories of the likeliest items."""
        by_item_RK = self.chance_RK / self.count_RK
        order_RK = (-by_item_RK).argsort(axis=1)
        by_item_RK = np.take_along_axis(by_item_RK, order_RK, axis=1)
        size_RK = np.take_along_axis(self.count_RK, order_RK, axis=1)
        taken_before_RK = size_RK.cumsum(axis=1) - size_RK
        return float((by_item_RK * (at - taken_before_RK).clip(0, size_RK)).sum(axis=1).mean())


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The constants of the paper's stream.

    Attributes:
        items: ids, each in one category at random.
        categories: of the catalogue; ``per_record``, at most, of a record.
        available: share of the ids that can occur in the first record; it grows evenly to all of them in the last.
        most_alpha: a record's concentration is uniform between 1 and this.
    """

    items: int = 20_000
    categories: int = 100
    per_record: int = 5
    available: float = 0.4
    most_alpha: float = 500.0

    def draw(self, records: int, *, length: int, seed: int) -> tuple[ItemSequences, LastItems]:
        """Records in the order of the stream, and how their last items are distributed.

        Position n (from 1) has a category drawn anew from the record's prior with probability
        ``alpha / (alpha + n - 1)``, else that of a random earlier position; its item is any available one of it.
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
        draw_RL = _categories(prior_RK, alpha_R, length=length, random=random)
        first_RL = np.take_along_axis(first_RK, draw_RL, axis=1)
        count_RL = np.take_along_axis(count_RK, draw_RL, axis=1)
        item_RL = keys[first_RL + (random.random(count_RL.shape) * count_RL).astype(np.int64)] % self.items
        data = ItemSequences(
            item_E=item_RL.ravel(),
            time_E=None,
            offsets=np.arange(records + 1, dtype=np.int64) * length,
            items=self.items,
        )
        before_RK = (draw_RL[:, :-1, None] == np.arange(self.per_record)).sum(axis=1)
        chance_RK = (alpha_R[:, None] * prior_RK + before_RK) / (alpha_R[:, None] + length - 1)
        last = LastItems(category_I=category_I, own_RK=own_RK, count_RK=count_RK, chance_RK=chance_RK, limit_R=limit_R)
        return data, last


def _categories(prior_RK: Real, alpha_R: Real, *, length: int, random: np.random.Generator) -> Index:
    """Which of the record's categories each position has, int64 ``[R, L]``."""
    records = len(prior_RK)
    cumulative_RK = prior_RK.cumsum(axis=1)
    draw_RL = np.empty((records, length), dtype=np.int64)
    for position in range(length):
        fresh_R = (random.random(records)[:, None] > cumulative_RK[:, :-1]).sum(axis=1)
        if position == 0:
            draw_RL[:, 0] = fresh_R
            continue
        earlier_R = draw_RL[np.arange(records), random.integers(position, size=records)]
        is_fresh_R = random.random(records) < alpha_R / (alpha_R + position)
        draw_RL[:, position] = np.where(is_fresh_R, fresh_R, earlier_R)
    return draw_RL
