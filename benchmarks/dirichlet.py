"""Pointwise against softmax attention on a stream with a growing vocabulary, after HSTU (arXiv 2402.17152, 4.1.1).

Each model reads the first nine tenths of the stream once, in order, and predicts the last items of the records after
it. The stream has 100,000 records where the paper has a million, so that a model takes minutes on a CPU. Hit rates
are in expectation over the last items, whose distribution is known: the same figures without the luck of the draw.
"""

import logging

import numpy as np

from benchmarks.options import Options, Values
from benchmarks.sequential.dirichlet_stream import LastItems, Stream
from benchmarks.sequential.encoder import SequenceEncoder
from benchmarks.sequential.evaluation import top_items
from benchmarks.sequential.sequences import ItemSequences
from benchmarks.sequential.training import Recipe, SequenceTrainer

logger = logging.getLogger(__name__)

RECORDS = 100_000
LENGTH = 128
TRAIN_SHARE = 0.9
SEEDS = (0, 1, 2)
AT = (10, 50)

MODELS = {
    "transformer": SequenceEncoder.Config(kind="sasrec"),
    "softmax": SequenceEncoder.Config(kind="softmax_hstu"),
    "pointwise": SequenceEncoder.Config(kind="hstu"),
}


def measure(_: Options) -> Values:
    """HR@10 and HR@50 of each model, and the best that any could have: means over seeds of data and model."""
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        data, last = Stream().draw(RECORDS, length=LENGTH, seed=seed)
        first = int(TRAIN_SHARE * RECORDS)
        train, test = data.split(first)
        truth = last.after(first)
        by_model = {"ceiling": {at: truth.ceiling(at) for at in AT}}
        for name, encoder in MODELS.items():
            recipe = Recipe(encoder=encoder, epochs=1, seed=seed, length=LENGTH, averaging=0.0)
            by_model[name] = hit_rates(recipe, train, test, truth)
        for name, rates in by_model.items():
            for at, rate in rates.items():
                found.setdefault(f"hr{at}_{name}", []).append(rate)
    for at in AT:
        pairs = zip(found[f"hr{at}_pointwise"], found[f"hr{at}_softmax"], strict=True)
        found[f"hr{at}_pointwise_over_softmax"] = [pointwise - softmax for pointwise, softmax in pairs]
    values: Values = {"records": RECORDS, "seeds": len(SEEDS)}
    for key, per_seed in found.items():
        values |= {key: round(float(np.mean(per_seed)), 5)}
        values |= {f"{key}_min": round(min(per_seed), 5), f"{key}_max": round(max(per_seed), 5)}
    return values


def hit_rates(recipe: Recipe, train: ItemSequences, test: ItemSequences, truth: LastItems) -> dict[int, float]:
    """HR@10 and HR@50 after one pass over ``train``, in its order."""
    trainer = SequenceTrainer(recipe=recipe, items=train.items)
    loss, seconds = trainer.epoch(train, np.arange(len(train)), held_out=0)
    item_SN = top_items(trainer.averaged, test, held_out=1, count=max(AT))
    rates = {at: truth.hit_rate(item_SN[:, :at]) for at in AT}
    logger.info(
        f"{recipe.encoder.kind}, seed {recipe.seed}: {seconds:.3f} s a step, loss {loss:.4f}, hit rates {rates}"
    )
    return rates
