import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import ml1m
from benchmarks.options import Options
from benchmarks.sequential.encoder import SequenceEncoder
from benchmarks.sequential.runs import Evaluation, Runs
from benchmarks.sequential.training import Recipe
from streaming.errors import ConfigError


def evaluations(values):
    return [
        Evaluation(epoch=4 * (index + 1), hr10=0.0, ndcg10=value, hr50=0.0, hr200=0.0)
        for index, value in enumerate(values)
    ]


def test_the_epoch_is_chosen_by_three_evaluations_in_a_row():
    epoch, value = ml1m.best_epoch(evaluations([0.1, 0.8, 0.1, 0.5, 0.5, 0.5, 0.2]))
    assert epoch == 20 and value == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least 3"):
        ml1m.best_epoch(evaluations([0.1, 0.2]))


def test_interval_holds_the_mean_and_is_wider_where_seeds_disagree():
    random = np.random.default_rng(0)
    noise_RU = random.normal(size=(3, 400))
    low, high = ml1m.paired_interval(noise_RU + 0.1)
    assert low < (noise_RU + 0.1).mean() < high
    wide_low, wide_high = ml1m.paired_interval(noise_RU + np.array([[-1.0], [0.0], [1.0]]))
    assert wide_high - wide_low > 3 * (high - low)


def test_data_must_be_given():
    with pytest.raises(ConfigError, match="--data"):
        ml1m.measure(Options())


def test_the_last_items_decide_nothing_but_the_final_figures(tmp_path, monkeypatch):
    small = Recipe(encoder=SequenceEncoder.Config(width=8, layers=1), epochs=9, length=8, batch=8, negatives=5)
    names = ("hstu", "sasrec", "large")
    monkeypatch.setattr(ml1m, "EVERY", 3)
    monkeypatch.setattr(ml1m, "REPLICATES", 50)
    monkeypatch.setattr(ml1m, "recipes", lambda _: dict.fromkeys(names, small))
    calls = []
    record = Runs.record

    def spy(self, recipe, *, held_out, every=None):
        result = record(self, recipe, held_out=held_out, every=every)
        calls.append((held_out, recipe.learning_rate, recipe.epochs, recipe.seed, len(result.evaluations)))
        return result

    monkeypatch.setattr(Runs, "record", spy)
    random = np.random.default_rng(0)
    path = tmp_path / "sequences.parquet"
    rows = [(user, movie, place) for user in range(20) for place, movie in enumerate(random.permutation(25)[:9])]
    pq.write_table(pa.table(dict(zip(movielens_columns(), map(list, zip(*rows, strict=True)), strict=True))), path)
    values = ml1m.measure(Options(data=path))
    chosen = values["learning_rate_chosen"], values["epochs_chosen"]
    assert chosen[0] in ml1m.LEARNING_RATES and chosen[1] in (3, 6, 9)
    selection, final = calls[:5], calls[5:]
    assert selection == [(2, rate, 9, 0, 3) for rate in (*ml1m.LEARNING_RATES, *ml1m.LEARNING_RATES, chosen[0])]
    assert final == [(1, *chosen, seed, 1) for seed in (0, 1, 2, 0, 1, 2, 0)]
    assert values["biases"] == "position"
    assert values["hr10_diff_lo"] == values["hr10_diff_hi"] == 0.0


def movielens_columns():
    return ("user_id", "movie_id", "pos")
