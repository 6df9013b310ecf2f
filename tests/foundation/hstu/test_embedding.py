"""Embeddings behind admission: evicted rows start again, unknown ids stay at zero, the optimiser is Adagrad by row."""

from collections.abc import Iterable

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.hstu.embedding import FeatureEmbedding, RowWiseAdagrad, TableSizes
from streaming.batch import keyed

RATE = 0.1
WIDTH = 3


def embedding(**capacity: int) -> FeatureEmbedding:
    return FeatureEmbedding(capacity=capacity or {"item": 4}, width=WIDTH).train()


def batch(*rows: Iterable[int] | int, features: tuple[str, ...] = ("item",)) -> KeyedJaggedTensor:
    return keyed(list(features), np.array(rows, dtype=np.int64).reshape(-1, len(features)))


def train(model: FeatureEmbedding, optimiser: RowWiseAdagrad, codes: KeyedJaggedTensor, direction: Tensor) -> None:
    """One step of the loss ``sum(embedding * direction)``, whose gradient by row is the sum of its directions."""
    optimiser.zero_grad(set_to_none=True)
    (model(codes) * direction).sum().backward()
    optimiser.step()


def value(model: FeatureEmbedding, code: int) -> list[float]:
    """What a reader sees of ``code``."""
    was = model.training
    seen = model.eval()(batch(code))[0].tolist()
    model.train(was)
    return seen


def test_the_sum_of_the_features() -> None:
    model = embedding(item=5, brand=5)
    for name in ("item", "brand"):
        with torch.no_grad():
            model.table(name)[1:] = torch.randn(4, WIDTH)
    rows = [(7, 100), (8, 100), (7, 101), (7, 0)]
    output = model(batch(*rows, features=("item", "brand")))
    item, brand = model.table("item"), model.table("brand")
    expected = [item[1] + brand[1], item[2] + brand[1], item[1] + brand[2], item[1]]
    assert torch.allclose(output, torch.stack(expected), rtol=0, atol=1e-7)
    assert output.dtype == torch.float32


def test_a_feature_may_be_called_type_or_forward() -> None:
    assert embedding(type=4, forward=4)(batch((1, 2), features=("type", "forward"))).shape == (1, WIDTH)


def test_evaluation_admits_nothing() -> None:
    model = embedding().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not model(batch(5, 6)).any()
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    model.train()(batch(5))
    assert model.statistics()["item/occupancy"] == pytest.approx(1 / 3)


def test_an_evicted_row_is_zero_and_its_accumulator_restarts() -> None:
    model = embedding(item=3)
    optimiser = RowWiseAdagrad([model], learning_rate=RATE)
    ones = torch.ones(1, WIDTH)
    train(model, optimiser, batch(5), 10 * ones)
    train(model, optimiser, batch(6), ones)
    assert value(model, 5) == pytest.approx([-RATE] * WIDTH)
    train(model, optimiser, batch(7), 2 * ones)  # takes the slot of 5
    assert value(model, 5) == [0.0] * WIDTH
    # As of a table that never knew 5: the first step of Adagrad has length RATE.
    assert value(model, 7) == pytest.approx([-RATE] * WIDTH)
    (total,) = (state["sum"] for state in optimiser.state.values())
    assert total.tolist() == [0.0, 4.0, 1.0]
    assert value(model, 6) == pytest.approx([-RATE] * WIDTH)


def test_a_row_is_zero_as_soon_as_it_changes_hands() -> None:
    model = embedding(item=2)
    optimiser = RowWiseAdagrad([model], learning_rate=RATE)
    train(model, optimiser, batch(5), torch.ones(1, WIDTH))
    assert not model(batch(6)).any()


def test_what_comes_back_after_eviction_has_forgotten_everything() -> None:
    model = embedding(item=2)
    optimiser = RowWiseAdagrad([model], learning_rate=RATE)
    for code in (5, 6, 5):
        train(model, optimiser, batch(code), torch.ones(1, WIDTH))
        assert value(model, code) == pytest.approx([-RATE] * WIDTH)


def test_slot_zero_stays_zero_after_training() -> None:
    model = embedding(item=3)
    optimiser = RowWiseAdagrad([model], learning_rate=RATE)
    for _ in range(3):
        # The unknown code, and codes beyond what the table holds.
        train(model, optimiser, batch(0, 1, 2, 3, 4), torch.ones(5, WIDTH))
    assert not model.table("item")[0].any()
    assert not next(iter(optimiser.state.values()))["sum"][0].any()
    assert model.table("item")[1:].all()
    assert not any(value(model, 0) + value(model, 3))


STEPS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=1, max_size=6)


@settings(deadline=None, max_examples=50)
@given(STEPS, st.integers(0, 99))
def test_equal_to_dense_adagrad_by_row(steps: list[list[int]], seed: int) -> None:
    model = embedding(item=7)
    optimiser = RowWiseAdagrad([model], learning_rate=RATE, eps=1e-3)
    stream = torch.Generator().manual_seed(seed)
    weight = torch.zeros(6, WIDTH, dtype=torch.float64)
    total = torch.zeros(6, dtype=torch.float64)
    for step in steps:
        direction = torch.randn(len(step), WIDTH, generator=stream)
        train(model, optimiser, batch(*step), direction)
        gradient = torch.zeros(6, WIDTH, dtype=torch.float64)
        for code, row in zip(step, direction.double(), strict=True):
            gradient[code] += row
        gradient[0] = 0.0
        total += (gradient**2).mean(1)
        weight -= RATE * gradient / (total.sqrt() + 1e-3)[:, None]
    for code in range(6):
        assert value(model, code) == pytest.approx(weight[code].tolist(), rel=1e-4, abs=1e-6)


def test_only_rows_that_were_looked_up_move() -> None:
    model = embedding(item=6)
    optimiser = RowWiseAdagrad([model], learning_rate=RATE)
    train(model, optimiser, batch(1, 2, 3), torch.ones(3, WIDTH))
    before = model.table("item").detach().clone()
    train(model, optimiser, batch(2), torch.ones(1, WIDTH))
    changed = (model.table("item") != before).any(1)
    assert changed.tolist() == [False, False, True, False, False, False]


def test_the_state_of_a_snapshot_gives_the_same_embeddings() -> None:
    model, twin = embedding(item=4), embedding(item=4)
    optimiser = RowWiseAdagrad([model], learning_rate=RATE)
    for code in (5, 6, 7, 8):
        train(model, optimiser, batch(code), torch.randn(1, WIDTH))
    twin.load_state_dict(model.state_dict())
    assert [value(twin, code) for code in range(10)] == [value(model, code) for code in range(10)]


def test_sizes() -> None:
    sizes = TableSizes(default=16, rows={"brand": 4})
    assert sizes.of(["item", "brand"]) == {"item": 16, "brand": 4}
    with pytest.raises(pydantic.ValidationError):
        TableSizes(default=1)


def test_no_features_embed_to_zeros() -> None:
    model = FeatureEmbedding(capacity={}, width=WIDTH)
    assert model(keyed([], np.zeros((4, 0), dtype=np.int64))).equal(torch.zeros(4, WIDTH))
