"""Embeddings behind a vocabulary: evicted rows start again, and backward is a step of Adagrad by row."""

import copy

import numpy as np
import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foundation.hstu.embedding import FeatureEmbedding, RowWiseAdagrad, placement
from foundation.hstu.vocabulary import Slots, Vocabulary
from streaming.batch import keyed

RATE = 0.1
WIDTH = 4
ONES = torch.ones(1, WIDTH)
NOTHING = torch.zeros(0, dtype=torch.int64)


class Embedded(nn.Module):
    """An embedding and its optimiser over one vocabulary, as a model has them."""

    def __init__(self, **capacity: int) -> None:
        super().__init__()
        self.vocabulary = Vocabulary(capacity)
        self.embedding = FeatureEmbedding.of(self.vocabulary, width=WIDTH)
        self.optimiser = RowWiseAdagrad([self.embedding], learning_rate=RATE)

    def forward(self, *things: int | tuple[int, ...]) -> Tensor:
        features = self.vocabulary.features
        codes = np.array(things, dtype=np.int64).reshape(-1, len(features))
        return self.embedding(self.vocabulary(keyed(features, codes), time=0))

    def step(self, *things: int | tuple[int, ...], direction: Tensor) -> None:
        """Descend ``sum(embedding * direction)``: the gradient of a row is the sum of its directions."""
        (self.train()(*things) * direction).sum().backward()

    @torch.no_grad()
    def value(self, code: int) -> list[float]:
        """What a reader sees of ``code``."""
        return self.eval()(code)[0].tolist()

    @property
    def totals(self) -> list[float]:
        """The accumulators by row."""
        return self.embedding.squares.tolist()


def test_the_sum_of_the_features() -> None:
    model = Embedded(item=5, brand=4)
    with torch.no_grad():
        model.embedding.weight.normal_(generator=torch.Generator().manual_seed(0))
    row = model.embedding.weight.detach().clone()
    output = model.train()((7, 100), (8, 100), (7, 101), (7, 0))
    expected = torch.stack([row[1] + row[6], row[2] + row[6], row[1] + row[7], row[1] + row[5]])
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)
    assert output.dtype == torch.float32


def test_bags_of_any_size() -> None:
    embedding = FeatureEmbedding(rows=5, width=WIDTH)
    with torch.no_grad():
        embedding.weight.copy_(torch.arange(5.0)[:, None].expand(5, WIDTH))
    bags = Slots(row_I=torch.tensor([4, 1, 1, 3]), offsets=torch.tensor([0, 1, 1, 4, 4]), evicted=NOTHING)
    assert embedding(bags)[:, 0].tolist() == [4.0, 0.0, 5.0, 0.0]


def test_evaluation_changes_nothing() -> None:
    model = Embedded(item=4)
    model.step(5, direction=ONES)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not any(model.value(6))
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_every_way_of_reading_gives_the_same_bits() -> None:
    model = Embedded(item=8)
    for code in range(1, 7):
        model.step(code, code + 1, direction=torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(code)))
    learning = model.eval()(1, 2, 3, 99)
    with torch.no_grad():
        assert model(1, 2, 3, 99).equal(learning)
    with torch.inference_mode():
        assert (1.0 * model(1, 2, 3, 99)).equal(learning)


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
    RowWiseAdagrad(models, learning_rate=RATE)
    for code in (5, 6):
        slots = vocabulary(keyed(["item"], np.array([[code]])), time=0)
        for model in models:
            model(slots).sum().backward()
    for model in models:
        assert model.weight[1].tolist() == pytest.approx([-RATE] * WIDTH)
        assert model.squares.tolist() == [0.0, 1.0]


def test_unknown_and_refused_codes_share_one_row_that_learns() -> None:
    model = Embedded(item=3)
    model.step(0, 1, 2, 3, direction=torch.ones(4, WIDTH))  # 3 finds no room
    assert model.value(0) == model.value(3) == model.value(99) == pytest.approx([-RATE] * WIDTH)
    assert model.totals == [4.0, 1.0, 1.0]


STEPS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=1, max_size=6)


@settings(deadline=None, max_examples=50)
@given(STEPS, st.integers(0, 99))
def test_equal_to_dense_adagrad_by_row(steps: list[list[int]], seed: int) -> None:
    model = Embedded(item=7)
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
        weight -= RATE * gradient / (total.sqrt() + 1e-8)[:, None]
    seen = {code for step in steps for code in step}
    for code in seen:
        assert model.value(code) == pytest.approx(weight[code].tolist(), rel=1e-4, abs=1e-6)


def test_the_learning_rate_may_change_between_steps() -> None:
    model = Embedded(item=3)
    for rate, length in ((RATE, RATE), (0.0, 0.0), (10 * RATE, 10 * RATE / 3**0.5)):
        before = model.embedding.weight.detach().clone()
        model.embedding.learning_rate = rate
        model.step(5, direction=ONES)
        moved = (before - model.embedding.weight.detach())[1]
        assert moved.tolist() == pytest.approx([length] * WIDTH, rel=1e-5)


def test_nothing_learns_without_an_optimiser_or_without_a_backward_pass() -> None:
    embedding = FeatureEmbedding(rows=3, width=WIDTH)
    bag = Slots(row_I=torch.tensor([1]), offsets=torch.tensor([0, 1]), evicted=NOTHING)
    embedding(bag).sum().backward()
    assert not embedding.weight.any()
    optimiser = RowWiseAdagrad([embedding], learning_rate=RATE)
    embedding(bag)
    assert not embedding.weight.any()
    embedding(bag).sum().backward()
    assert embedding.weight.any()
    assert embedding.weight.grad is None and optimiser.embeddings == [embedding]


def test_an_optimiser_starts_with_empty_accumulators() -> None:
    embedding = FeatureEmbedding(rows=3, width=WIDTH)
    embedding(Slots(row_I=torch.tensor([1]), offsets=torch.tensor([0, 1]), evicted=NOTHING)).sum().backward()
    RowWiseAdagrad([embedding], learning_rate=RATE)
    assert not embedding.squares.any()


def test_only_rows_that_were_looked_up_move() -> None:
    model = Embedded(item=6)
    model.step(1, 2, 3, direction=torch.ones(3, WIDTH))
    before = model.embedding.weight.detach().clone()
    model.step(2, direction=ONES)
    assert (model.embedding.weight != before).any(1).tolist() == [False, False, True, False, False, False]


def test_any_number_of_threads_gives_the_same_bits() -> None:
    stream = torch.Generator().manual_seed(0)
    bags = [
        Slots(
            row_I=torch.randint(0, 900, (4000,), generator=stream),  # rows that many bags share, and large sums
            offsets=torch.arange(0, 4001, 4),
            evicted=torch.randint(0, 900, (3,), generator=stream),
        )
        for _ in range(4)
    ]
    direction = torch.randn(1000, 16, generator=stream)
    tables = []
    threads = torch.get_num_threads()
    for count in (1, 2, 2, 3):
        torch.set_num_threads(count)
        embedding = FeatureEmbedding(rows=900, width=16)
        RowWiseAdagrad([embedding], learning_rate=RATE)
        for bag in bags:
            (embedding(bag).sigmoid() * direction).sum().backward()
        tables.append((embedding.weight.detach(), embedding.squares))
    torch.set_num_threads(threads)
    for weight, squares in tables[1:]:
        assert weight.equal(tables[0][0]) and squares.equal(tables[0][1])


def test_the_state_of_a_snapshot_gives_the_same_embeddings() -> None:
    model, twin = Embedded(item=4), Embedded(item=4)
    for code in (5, 6, 7, 8):
        model.step(code, direction=torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(code)))
    state = model.state_dict()
    assert [name for name in state if name.startswith("embedding")] == ["embedding.weight"]
    twin.load_state_dict(state)
    assert [twin.value(code) for code in range(10)] == [model.value(code) for code in range(10)]


def test_no_features_embed_to_zeros() -> None:
    model = Embedded()
    codes = keyed([], np.zeros((3, 0), dtype=np.int64))
    output = model.embedding(model.vocabulary(codes, time=0))
    assert output.equal(torch.zeros(3, WIDTH))
    output.sum().backward()


def test_nothing_to_embed() -> None:
    model = Embedded(item=4)
    output = model.train()()
    assert output.shape == (0, WIDTH)
    output.sum().backward()
    assert not model.embedding.weight.any()


@pytest.mark.parametrize("width", [1, 6, 63])
def test_widths_that_the_kernels_lack(width: int) -> None:
    with pytest.raises(ValueError, match=f"embedding width {width} must be a multiple of 4. Example: 64"):
        FeatureEmbedding(rows=3, width=width)


def test_a_row_outside_the_table_is_an_error() -> None:
    embedding = FeatureEmbedding(rows=3, width=WIDTH)
    with pytest.raises(RuntimeError, match="out of bounds: 3, range 0 to 3"):
        embedding(Slots(row_I=torch.tensor([3]), offsets=torch.tensor([0, 1]), evicted=NOTHING))


def test_a_copy_does_not_learn_in_silence_beside_its_table() -> None:
    model = Embedded(item=3)
    model.step(5, direction=ONES)
    other = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="copied or moved"):
        other(5)
    assert model.value(5) == pytest.approx([-RATE] * WIDTH)


def test_tables_lie_where_they_are_built() -> None:
    assert placement(torch.device("cpu")) == (EmbeddingLocation.HOST, ComputeDevice.CPU)
    assert placement(torch.device("cuda:1")) == (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
    with torch.device("meta"), pytest.raises(ValueError, match="cannot lie on 'meta': allowed are cpu, cuda"):
        FeatureEmbedding(rows=3, width=WIDTH)
