"""Both optimisers as one: who updates what, and a state that continues with the same bits."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foundation.hstu.embedding import FeatureEmbedding
from foundation.hstu.loss import masked_log_loss
from foundation.hstu.optimiser import ModelOptimiser
from foundation.hstu.vocabulary import Vocabulary
from hypercast.training import checkpoint
from hypercast.training.random import initialise_
from streaming.batch import keyed


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vocabulary = Vocabulary({"item": 5})
        self.embedding = FeatureEmbedding.of(self.vocabulary, width=4)
        self.hidden = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 2)  # has no gradient, as the parts that a batch does not reach
        self.head = nn.Linear(4, 1)
        initialise_(self, 0)

    def forward(self, codes: np.ndarray) -> Tensor:
        embedded = self.embedding(self.vocabulary(keyed(["item"], codes[:, None]), time=0))
        return self.head(torch.tanh(self.hidden(embedded + 0.1)))


def made(**config: float) -> tuple[Small, ModelOptimiser]:
    model = Small().train()
    return model, ModelOptimiser.Config(**config).build(model)


def batches(count: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(0)
    for _ in range(count):
        yield random.integers(1, 9, 6)  # more codes than rows: with evictions


def step(model: Small, optimiser: ModelOptimiser, codes: np.ndarray) -> None:
    optimiser.step((model(codes)[:, 0] - torch.from_numpy(codes % 2)).square().mean())


def test_state_round_trip_gives_the_identical_next_step() -> None:
    model, optimiser = made(weight_decay=0.01)
    first, *rest = list(batches(8))
    step(model, optimiser, first)
    for codes in rest[:3]:
        step(model, optimiser, codes)
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    tensors, skeleton = checkpoint.pack(state)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    twin, other = made(weight_decay=0.01)
    restored = checkpoint.unpack(copies, skeleton)
    twin.load_state_dict(restored["model"])
    other.load_state_dict(restored["optimiser"])
    for codes in rest[3:]:
        step(model, optimiser, codes)
        step(twin, other, codes)
        mine, theirs = model.state_dict(), twin.state_dict()
        assert all(mine[name].equal(theirs[name]) for name in mine)
    mine, _ = checkpoint.pack(optimiser.state_dict())
    theirs, _ = checkpoint.pack(other.state_dict())
    assert mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)


def test_tables_belong_to_adagrad_and_the_rest_to_adamw() -> None:
    model, optimiser = made()
    dense = {id(parameter) for group in optimiser.dense.param_groups for parameter in group["params"]}
    sparse = {id(embedding.weight) for embedding in optimiser.sparse.embeddings}
    assert sparse == {id(model.embedding.weight)}
    assert dense | sparse == {id(parameter) for parameter in model.parameters()}
    assert not dense & sparse


def test_the_first_step_of_a_row_is_as_long_as_the_tables_learning_rate() -> None:
    model, optimiser = made(table_learning_rate=0.3)
    step(model, optimiser, np.array([1, 2, 2]))
    length = model.embedding.weight.detach().square().mean(1).sqrt()
    assert length.tolist() == pytest.approx([0.0, 0.3, 0.3, 0.0, 0.0])


def test_the_state_holds_the_learning_rates() -> None:
    state = made(table_learning_rate=0.3)[1].state_dict()
    _, other = made(table_learning_rate=0.1)
    other.load_state_dict(state)
    assert other.sparse.embeddings[0].learning_rate == pytest.approx(0.3)


def test_training_lowers_the_loss() -> None:
    model, optimiser = made(learning_rate=0.02, table_learning_rate=0.2)
    codes = np.array([1, 2, 3, 4])
    losses = []
    for _ in range(60):
        loss = (model(codes)[:, 0] - torch.from_numpy(codes % 2)).square().mean()
        losses.append(loss.item())
        optimiser.step(loss)
    assert losses[-1] < 0.1 * losses[0]


def test_first_step_of_the_dense_weights_is_adamw() -> None:
    model, optimiser = made(learning_rate=0.01, weight_decay=0.1, gradient_clip=1e9)
    before = model.head.weight.detach().clone()
    step(model, optimiser, np.array([1, 2]))
    gradient = model.head.weight.grad
    assert gradient is not None
    expected = before * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
    assert torch.allclose(model.head.weight, expected, rtol=0, atol=1e-7)


def test_the_dense_gradient_is_clipped() -> None:
    model, optimiser = made(gradient_clip=0.5)
    optimiser.step(1000 * model(np.array([1, 2])).square().sum())
    norms = torch.stack([weight.grad.norm() for weight in optimiser.weights if weight.grad is not None])
    assert norms.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_gradients_do_not_add_up_over_steps() -> None:
    model, optimiser = made()
    codes = np.array([1, 2])
    for _ in range(2):
        optimiser.step(0.0 * model(codes).sum())
    assert all(not weight.grad.any() for weight in optimiser.weights if weight.grad is not None)


def test_masked_log_loss() -> None:
    logit = torch.tensor([[0.0, 2.0], [-1.0, 3.0]], requires_grad=True)
    label = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    known = torch.tensor([[True, False], [True, True]])
    loss = masked_log_loss(logit, label, known)
    p = torch.sigmoid(logit)
    expected = -(p[0, 0].log() + (1 - p[1, 0]).log() + p[1, 1].log()) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert logit.grad is not None and logit.grad[0, 1] == 0.0
    assert masked_log_loss(logit, label, torch.zeros_like(known)).item() == 0.0


def test_the_average_is_of_the_weights_after_each_update() -> None:
    model, optimiser = made(averaging=0.9)
    expected = [weight.detach().clone() for weight in optimiser.weights]
    for update, codes in enumerate(batches(12), start=1):
        step(model, optimiser, codes)
        past = min(0.9, update / (9 + update))
        expected = [past * mean + (1 - past) * w.detach() for mean, w in zip(expected, optimiser.weights, strict=True)]
    last = [weight.detach().clone() for weight in optimiser.weights]
    with optimiser.averaged():
        for weight, mean in zip(optimiser.weights, expected, strict=True):
            torch.testing.assert_close(weight.detach(), mean)
    assert all(weight.equal(before) for weight, before in zip(optimiser.weights, last, strict=True))
    assert not all(weight.equal(mean) for weight, mean in zip(last, expected, strict=True))


def test_an_error_inside_gives_the_last_weights_back() -> None:
    model, optimiser = made()
    for codes in batches(3):
        step(model, optimiser, codes)
    last = [weight.detach().clone() for weight in optimiser.weights]
    with pytest.raises(RuntimeError, match="inside"), optimiser.averaged():
        raise RuntimeError("inside")
    assert all(weight.equal(before) for weight, before in zip(optimiser.weights, last, strict=True))


def test_without_averaging_the_last_weights_predict() -> None:
    model, optimiser = made(averaging=0.0)
    for codes in batches(3):
        step(model, optimiser, codes)
    last = [weight.detach().clone() for weight in optimiser.weights]
    with optimiser.averaged():
        assert all(weight.equal(before) for weight, before in zip(optimiser.weights, last, strict=True))
