"""MovieLens-1M: HSTU as the platform ships it against SASRec, in the protocol of HSTU (arXiv 2402.17152, table 4).

Leave-one-out: a user's last item is predicted from the 200 before it, among the whole catalogue without these 200.
Learning rate and number of epochs are chosen with the second-last item held out, on models that have seen neither it
nor the last; then the model is trained anew on all but the last item, and evaluated on that once.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.options import Options, Values
from benchmarks.sequential import movielens
from benchmarks.sequential.encoder import SequenceEncoder
from benchmarks.sequential.evaluation import hit_rate, ndcg
from benchmarks.sequential.runs import Evaluation, Record, Runs
from benchmarks.sequential.sequences import ItemSequences
from benchmarks.sequential.training import Recipe
from hypercast.training.memory import keep_freed_memory
from streaming.errors import ConfigError

SEEDS = (0, 1, 2)
TIME_BUCKETS = 128
LEARNING_RATES = (1e-3, 2e-3)
"""The published one and its double."""
EVERY = 4
"""Epochs between two evaluations while the number of epochs is chosen."""
REPLICATES = 10_000


def measure(options: Options) -> Values:
    """HR@K, NDCG@10 on the last items, means over seeds; minutes and seconds a step as recorded while training."""
    if options.data is None:
        raise ConfigError("ml1m needs --data: GroupLens ratings.dat, or a Parquet file of sequences")
    keep_freed_memory()
    data = movielens.load(options.data)
    with tempfile.TemporaryDirectory() as temporary:
        return _measure(data, Runs(data=data, folder=options.work or Path(temporary)))


def recipes(data: ItemSequences) -> dict[str, Recipe]:
    """By model: the published setting but for averaged weights, chosen with the second-last items held out. HSTU has no
    bias by time where the data has no times.
    """
    buckets = 0 if data.time_E is None else TIME_BUCKETS
    return {
        "hstu": Recipe(encoder=SequenceEncoder.Config(kind="hstu", time_buckets=buckets)),
        "sasrec": Recipe(encoder=SequenceEncoder.Config(kind="sasrec")),
        "large": Recipe(encoder=SequenceEncoder.Config(kind="hstu", layers=8, heads=2, time_buckets=buckets)),
    }


def _measure(data: ItemSequences, runs: Runs) -> Values:
    by_model = recipes(data)
    chosen = {name: choose(runs, by_model[name], LEARNING_RATES) for name in ("hstu", "sasrec")}
    # Trainings of the large model take several times as long: it has the small one's learning rate.
    chosen["large"] = choose(runs, by_model["large"], (chosen["hstu"].learning_rate,))
    tested = {name: [test(runs, chosen[name], seed=seed) for seed in SEEDS] for name in ("hstu", "sasrec")}
    large = test(runs, chosen["large"], seed=SEEDS[0])
    hstu, sasrec = (np.stack([record.rank_array() for record in tested[name]]) for name in ("hstu", "sasrec"))
    low, high = paired_interval((hstu < 10).astype(np.float64) - (sasrec < 10))
    first = tested["hstu"][0]
    return {
        "biases": "position" if data.time_E is None else "position and time",
        "seeds": len(SEEDS),
        "users": len(data),
        "items": data.items,
        "epochs_chosen": chosen["hstu"].epochs,
        "learning_rate_chosen": chosen["hstu"].learning_rate,
        "sasrec_epochs_chosen": chosen["sasrec"].epochs,
        "sasrec_learning_rate_chosen": chosen["sasrec"].learning_rate,
        "large_epochs_chosen": chosen["large"].epochs,
        "hr10": round(hit_rate(hstu, 10), 4),
        "hr10_se": round(_standard_error(hstu), 4),
        "ndcg10": round(ndcg(hstu, 10), 4),
        "hr50": round(hit_rate(hstu, 50), 4),
        "hr200": round(hit_rate(hstu, 200), 4),
        "sasrec_hr10": round(hit_rate(sasrec, 10), 4),
        "sasrec_ndcg10": round(ndcg(sasrec, 10), 4),
        "sasrec_hr50": round(hit_rate(sasrec, 50), 4),
        "sasrec_hr200": round(hit_rate(sasrec, 200), 4),
        "hr10_diff": round(hit_rate(hstu, 10) - hit_rate(sasrec, 10), 4),
        "hr10_diff_lo": round(low, 4),
        "hr10_diff_hi": round(high, 4),
        "large_hr10": round(hit_rate(large.rank_array(), 10), 4),
        "large_ndcg10": round(ndcg(large.rank_array(), 10), 4),
        "large_hr50": round(hit_rate(large.rank_array(), 50), 4),
        "large_hr200": round(hit_rate(large.rank_array(), 200), 4),
        "minutes": round(max(record.minutes for record in tested["hstu"]), 1),
        "cpu_minutes": round(first.cpu_minutes, 1),
        "seconds_per_step": round(first.seconds_per_step, 3),
        "training_threads": first.threads,
    }


def choose(runs: Runs, recipe: Recipe, learning_rates: Sequence[float]) -> Recipe:
    """The recipe with the learning rate and the epochs, at most its own, that do best on the second-last items."""
    options = [recipe.model_copy(update={"learning_rate": rate}) for rate in learning_rates]
    best = [best_epoch(runs.record(option, held_out=2, every=EVERY).evaluations) for option in options]
    option, (epochs, _) = max(zip(options, best, strict=True), key=lambda pair: pair[1][1])
    return option.model_copy(update={"epochs": epochs})


def best_epoch(evaluations: list[Evaluation]) -> tuple[int, float]:
    """The middle of the three evaluations in a row with the highest mean NDCG@10, as one alone is mostly luck; and
    that mean.
    """
    if len(evaluations) < 3:
        raise ValueError(f"{len(evaluations)} evaluations; at least 3 are needed to choose a number of epochs")
    value = [evaluation.ndcg10 for evaluation in evaluations]
    smooth = [sum(value[index - 1 : index + 2]) / 3 for index in range(1, len(value) - 1)]
    best = int(np.argmax(smooth))
    return evaluations[1 + best].epoch, smooth[best]


def test(runs: Runs, recipe: Recipe, *, seed: int) -> Record:
    """Train anew on all but the last items; evaluate on them once."""
    return runs.record(recipe.model_copy(update={"seed": seed}), held_out=1)


def paired_interval(difference_RU: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of ``[seeds, users]``; both are drawn with replacement."""
    random = np.random.default_rng(seed)
    seeds, users = difference_RU.shape
    means = np.empty(REPLICATES)
    for replicate in range(REPLICATES):
        by_user = difference_RU[random.integers(seeds, size=seeds)].mean(axis=0)
        means[replicate] = by_user[random.integers(users, size=users)].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _standard_error(ranks_RU: np.ndarray) -> float:
    """Of HR@10 averaged over seeds, from the spread of users."""
    return float((ranks_RU < 10).mean(axis=0).std() / np.sqrt(ranks_RU.shape[1]))
