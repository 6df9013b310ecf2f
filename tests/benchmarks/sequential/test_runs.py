import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.sequential.encoder import SequenceEncoder
from benchmarks.sequential.runs import Runs
from benchmarks.sequential.training import Recipe, SequenceTrainer, train

RECIPE = Recipe(encoder=SequenceEncoder.Config(width=8, layers=1), epochs=3, length=10, batch=5, negatives=6)


def trained(recipe, data, held_out):
    trainer = SequenceTrainer(recipe=recipe, items=data.items)
    train(trainer, data, held_out=held_out, after_epoch=lambda *_: None)
    return trainer.model.state_dict()


def equal(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("held_out", [1, 2])
def test_held_out_items_leave_no_trace_in_training(sequences, held_out):
    model = trained(RECIPE, sequences, held_out)
    for place in (1, 2, 3):
        changed = sequences.item_E.copy()
        ends = sequences.offsets[1:] - place
        changed[ends] = (changed[ends] + 11) % 30
        other = trained(RECIPE, dataclasses.replace(sequences, item_E=changed), held_out)
        assert equal(model, other) == (place <= held_out)


def test_seeds_reproduce_and_differ(sequences):
    first, again, other = (
        trained(RECIPE.model_copy(update={"seed": seed}), sequences, held_out=1) for seed in (0, 0, 1)
    )
    assert equal(first, again)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("item.weight"))


def test_training_lowers_the_loss(sequences, tmp_path):
    record = Runs(data=sequences, folder=tmp_path).record(
        RECIPE.model_copy(update={"epochs": 20, "learning_rate": 0.02}), held_out=1
    )
    assert record.losses[-1] < 0.7 * record.losses[0]


def test_a_record_is_read_again_by_what_it_depends_on(sequences, tmp_path, monkeypatch):
    runs = Runs(data=sequences, folder=tmp_path)
    record = runs.record(RECIPE, held_out=2, every=2)
    assert [evaluation.epoch for evaluation in record.evaluations] == [2, 3]
    assert len(record.ranks) == len(sequences)
    assert record.evaluations[-1].hr10 == np.mean(record.rank_array() < 10)

    monkeypatch.setattr(Runs, "_train", lambda *_, **__: pytest.fail("trained again"))
    assert Runs(data=sequences, folder=tmp_path).record(RECIPE, held_out=2, every=2) == record
    changed = dataclasses.replace(sequences, item_E=sequences.item_E[::-1].copy())
    for data, recipe, held_out in (
        (sequences, RECIPE, 1),
        (sequences, RECIPE.model_copy(update={"seed": 1}), 2),
        (changed, RECIPE, 2),
    ):
        with pytest.raises(pytest.fail.Exception):
            Runs(data=data, folder=tmp_path).record(recipe, held_out=held_out, every=2)


@pytest.mark.parametrize("averaging", [0.0, 0.5])
def test_averaged_weights_are_an_exponential_mean_over_steps(sequences, averaging):
    recipe = RECIPE.model_copy(update={"averaging": averaging})
    trainer = SequenceTrainer(recipe=recipe, items=sequences.items)
    expected = None
    for batch in sequences.batches(np.arange(len(sequences)), size=5, length=10, held_out=0):
        trainer.step(batch)
        weights = trainer.model.item.weight.detach().clone()
        expected = weights if expected is None else averaging * expected + (1 - averaging) * weights
    torch.testing.assert_close(trainer.averaged.item.weight, expected)
    assert torch.equal(trainer.averaged.item.weight, trainer.model.item.weight) == (averaging == 0.0)
