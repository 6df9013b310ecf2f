"""Embeddings behind a vocabulary: evicted rows start again, and the optimiser is Adagrad by row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foundation.hstu.embedding import FeatureEmbedding, RowWiseAdagrad
from foundation.hstu.vocabulary import Vocabulary
from streaming.batch import keyed

RATE = 0.1
WIDTH = 3
ONES = torch.ones(1, WIDTH)


class Embedded(nn.Module):
    """An embedding and its optimiser over one vocabulary, as a model has them."""

    def __init__(self, *, eps: float = 1e-8, **capacity: int) -> None:
        super().__init__()
        self.vocabulary = Vocabulary(capacity)
        self.embedding = FeatureEmbedding.of(self.vocabulary, width=WIDTH)
        self.optimiser = RowWiseAdagrad([self.embedding], learning_rate=RATE, eps=eps)

    def forward(self, *things: int | tuple[int, ...]) -> Tensor:
        features = self.vocabulary.features
        codes = np.array(things, dtype=np.int64).reshape(-1, len(features))
        return self.embedding(self.vocabulary(keyed(features, codes)))

    def step(self, *things: int | tuple[int, ...], direction: Tensor) -> None:
        """Descend ``sum(embedding * direction)``: the gradient of a row is the sum of its directions."""
        self.optimiser.zero_grad(set_to_none=True)
        (self.train()(*things) * direction).sum().backward()
        self.optimiser.step()

    @torch.no_grad()
    def value(self, code: int) -> list[float]:
        """What a reader sees of ``code``."""
        return self.eval()(code)[0].tolist()

    @property
    def totals(self) -> list[float]:
        """The accumulators by row."""
        return self.optimiser.state[self.embedding.weight]["sum"].tolist()


def test_the_sum_of_the_features() -> None:
    model = Embedded(item=5, brand=4)
    with torch.no_grad():
        model.embedding.weight.normal_(generator=torch.Generator().manual_seed(0))
    output = model.train()((7, 100), (8, 100), (7, 101), (7, 0))
    row = model.embedding.weight
    expected = torch.stack([row[1] + row[6], row[2] + row[6], row[1] + row[7], row[1] + row[5]])
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)
    assert output.dtype == torch.float32


def test_evaluation_changes_nothing() -> None:
    model = Embedded(item=4)
    model.step(5, direction=ONES)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not any(model.value(6))
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_an_evicted_row_is_zero_and_its_accumulator_restarts() -> None:
    model = Embedded(item=3)
    model.step(5, direction=10 * ONES)
    model.step(6, direction=ONES)
    assert model.value(5) == pytest.approx([-RATE] * WIDTH)
    assert model.totals == [0.0, 100.0, 1.0]
    model.step(7, direction=2 * ONES)  # takes the row of 5
    assert model.value(5) == [0.0] * WIDTH
    # As of a table that never knew 5: the first step of Adagrad has length RATE.
    assert model.value(7) == pytest.approx([-RATE] * WIDTH)
    assert model.totals == [0.0, 4.0, 1.0]
    assert model.value(6) == pytest.approx([-RATE] * WIDTH)


def test_a_row_is_zero_as_soon_as_it_changes_hands() -> None:
    model = Embedded(item=2)
    model.step(5, direction=ONES)
    assert not model.train()(6).any()


def test_what_comes_back_after_eviction_has_forgotten_everything() -> None:
    model = Embedded(item=2)
    for code in (5, 6, 5):
        model.step(code, direction=ONES)
        assert model.value(code) == pytest.approx([-RATE] * WIDTH)


def test_models_that_share_a_vocabulary_each_zero_their_own_rows() -> None:
    vocabulary = Vocabulary({"item": 2}).train()
    models = [FeatureEmbedding.of(vocabulary, width=WIDTH) for _ in range(2)]
    optimisers = [RowWiseAdagrad([model], learning_rate=RATE) for model in models]
    for code in (5, 6):
        slots = vocabulary(keyed(["item"], np.array([[code]])))
        for model, optimiser in zip(models, optimisers, strict=True):
            optimiser.zero_grad()
            model(slots).sum().backward()
            optimiser.step()
    for model, optimiser in zip(models, optimisers, strict=True):
        assert model.weight[1].tolist() == pytest.approx([-RATE] * WIDTH)
        assert optimiser.state[model.weight]["sum"].tolist() == [0.0, 1.0]


def test_unknown_and_refused_codes_share_one_row_that_learns() -> None:
    model = Embedded(item=3)
    model.step(0, 1, 2, 3, direction=torch.ones(4, WIDTH))  # 3 finds no room
    assert model.value(0) == model.value(3) == model.value(99) == pytest.approx([-RATE] * WIDTH)
    assert model.totals == [4.0, 1.0, 1.0]


STEPS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=1, max_size=6)


@settings(deadline=None, max_examples=50)
@given(STEPS, st.integers(0, 99))
def test_equal_to_dense_adagrad_by_row(steps: list[list[int]], seed: int) -> None:
    model = Embedded(item=7, eps=1e-3)
    stream = torch.Generator().manual_seed(seed)
    weight = torch.zeros(6, WIDTH, dtype=torch.float64)
    total = torch.zeros(6, dtype=torch.float64)
    for step in steps:
        direction = torch.randn(len(step), WIDTH, generator=stream)
        model.step(*step, direction=direction)
        gradient = torch.zeros(6, WIDTH, dtype=torch.float64)
        for code, row in zip(step, direction.double(), strict=True):
            gradient[code] += row
        total += (gradient**2).mean(1)
        weight -= RATE * gradient / (total.sqrt() + 1e-3)[:, None]
    seen = {code for step in steps for code in step}
    for code in seen:
        assert model.value(code) == pytest.approx(weight[code].tolist(), rel=1e-4, abs=1e-6)


def test_only_rows_that_were_looked_up_move() -> None:
    model = Embedded(item=6)
    model.step(1, 2, 3, direction=torch.ones(3, WIDTH))
    before = model.embedding.weight.detach().clone()
    model.step(2, direction=ONES)
    assert (model.embedding.weight != before).any(1).tolist() == [False, False, True, False, False, False]


def test_the_state_of_a_snapshot_gives_the_same_embeddings() -> None:
    model, twin = Embedded(item=4), Embedded(item=4)
    for code in (5, 6, 7, 8):
        model.step(code, direction=torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(code)))
    twin.load_state_dict(model.state_dict())
    assert [twin.value(code) for code in range(10)] == [model.value(code) for code in range(10)]


def test_no_features_embed_to_zeros() -> None:
    model = Embedded()
    codes = keyed([], np.zeros((4, 0), dtype=np.int64))
    assert model.embedding(model.vocabulary(codes)).equal(torch.zeros(4, WIDTH))
