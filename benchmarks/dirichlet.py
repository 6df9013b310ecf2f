"""Pointwise against softmax attention on a synthetic stream, after HSTU (arXiv 2402.17152, section 4.1.1).

The items of a record come from up to five of a hundred categories, whose shares follow a Dirichlet process; ids become
available as the stream goes on. Each model reads the stream once, in order, and predicts the last items of the records
after it. Smaller than the paper's stream of a million records, so that it runs on a CPU within minutes.

Shape legend: R records, L items of a record, K categories of a record.
"""

import logging
from dataclasses import dataclass

import numpy as np

from benchmarks.options import Options, Values
from benchmarks.sequential.encoder import SequenceEncoder
from benchmarks.sequential.evaluation import held_out_ranks, hit_rate
from benchmarks.sequential.sequences import Index, ItemSequences
from benchmarks.sequential.training import Recipe, SequenceTrainer
from hypercast.training.random import stream_seed

logger = logging.getLogger(__name__)

RECORDS = 100_000
LENGTH = 128
TRAIN_SHARE = 0.9
SEEDS = (0, 1, 2)

MODELS = {
    "transformer": SequenceEncoder.Config(kind="sasrec"),
    "softmax": SequenceEncoder.Config(kind="softmax_hstu"),
    "pointwise": SequenceEncoder.Config(kind="hstu"),
}


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

    def draw(self, records: int, *, length: int, seed: int) -> tuple[ItemSequences, dict[int, np.ndarray]]:
        """Records in the order of the stream; and for 10 and 50 items, the chance that the best of them (by category)
        hold a record's last item, known the categories before it and how they were drawn: float ``[R]``.

        Position n (from 1) has a category drawn anew from the record's prior with probability
        ``alpha / (alpha + n - 1)``, else that of a random earlier position; its item is any available one of it.
        """
        random = np.random.default_rng(stream_seed(seed, "dirichlet"))
        category_of = random.integers(self.categories, size=self.items)
        # Keys of items by category, then id: those of a category below a limit are one range.
        keys = np.sort(category_of * self.items + np.arange(self.items))
        limit_R = (self.items * np.linspace(self.available, 1.0, records)).astype(np.int64)
        alpha_R = random.uniform(1.0, self.most_alpha, size=records)
        own_RK = random.random((records, self.categories)).argpartition(self.per_record, axis=1)[:, : self.per_record]
        random.permuted(own_RK, axis=1, out=own_RK)
        prior_RK = random.exponential(size=own_RK.shape)
        prior_RK *= np.arange(self.per_record) < random.integers(1, self.per_record + 1, size=records)[:, None]
        prior_RK /= prior_RK.sum(axis=1, keepdims=True)
        rows = np.arange(records)
        draw_RL = _categories(prior_RK, alpha_R, length=length, random=random)
        category_RL = own_RK[rows[:, None], draw_RL]
        first_RL = np.searchsorted(keys, category_RL * self.items)
        count_RL = np.searchsorted(keys, category_RL * self.items + limit_R[:, None]) - first_RL
        if not count_RL.all():
            raise ValueError(f"a category has none of the first {limit_R[0]} items; take more items")
        item_RL = keys[first_RL + (random.random(count_RL.shape) * count_RL).astype(np.int64)] % self.items

        ceiling = _ceilings(
            prior_RK,
            alpha_R,
            draw_RL,
            count_RK=np.searchsorted(keys, own_RK * self.items + limit_R[:, None])
            - np.searchsorted(keys, own_RK * self.items),
        )
        offsets = np.arange(records + 1, dtype=np.int64) * length
        return ItemSequences(item_E=item_RL.ravel(), time_E=None, offsets=offsets, items=self.items), ceiling


def _categories(prior_RK: np.ndarray, alpha_R: np.ndarray, *, length: int, random: np.random.Generator) -> Index:
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


def _ceilings(
    prior_RK: np.ndarray, alpha_R: np.ndarray, draw_RL: Index, *, count_RK: np.ndarray
) -> dict[int, np.ndarray]:
    """See :meth:`Stream.draw`; fills the places from the category whose single items are likeliest."""
    before = draw_RL.shape[1] - 1
    counts_RK = (draw_RL[:, :before, None] == np.arange(prior_RK.shape[1])).sum(axis=1)
    chance_RK = (alpha_R[:, None] * prior_RK + counts_RK) / (alpha_R[:, None] + before)
    by_item_RK = chance_RK / count_RK
    order_RK = (-by_item_RK).argsort(axis=1)
    by_item_RK = np.take_along_axis(by_item_RK, order_RK, axis=1)
    size_RK = np.take_along_axis(count_RK, order_RK, axis=1)
    taken_before_RK = size_RK.cumsum(axis=1) - size_RK
    return {at: (by_item_RK * (at - taken_before_RK).clip(0, size_RK)).sum(axis=1) for at in (10, 50)}


def measure(_: Options) -> Values:
    """HR@10 and HR@50 of the last items of the stream's last tenth, means over seeds of data and model."""
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        data, ceiling = Stream().draw(RECORDS, length=LENGTH, seed=seed)
        train, test = data.split(int(TRAIN_SHARE * RECORDS))
        for at in (10, 50):
            found.setdefault(f"hr{at}_ceiling", []).append(float(ceiling[at][len(train) :].mean()))
        for name, encoder in MODELS.items():
            hits = _hit_rates(
                Recipe(encoder=encoder, epochs=1, seed=seed, length=LENGTH, learning_rate=1e-3, averaging=0.0),
                train,
                test,
            )
            for at, value in hits.items():
                found.setdefault(f"hr{at}_{name}", []).append(value)
    values: Values = {"records": RECORDS, "seeds": len(SEEDS)}
    for key, per_seed in found.items():
        values |= {key: round(float(np.mean(per_seed)), 4)}
        values |= {f"{key}_min": round(min(per_seed), 4), f"{key}_max": round(max(per_seed), 4)}
    return values


def _hit_rates(recipe: Recipe, train: ItemSequences, test: ItemSequences) -> dict[int, float]:
    trainer = SequenceTrainer(recipe=recipe, items=train.items)
    loss, seconds = trainer.epoch(train, np.arange(len(train)), held_out=0)
    ranks = held_out_ranks(trainer.averaged, test, held_out=1, seen_compete=True)
    hits = {at: hit_rate(ranks, at) for at in (10, 50)}
    logger.info(f"{recipe.encoder.kind}, seed {recipe.seed}: {seconds:.3f} s a step, loss {loss:.4f}, hit rates {hits}")
    return hits
