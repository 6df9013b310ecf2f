"""What the foundation model says about a candidate depends on it, its request and the past, and on nothing else."""

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pydantic
import pytest
import torch
from torch import Tensor

from foundation.hstu.layer import HSTUStack
from foundation.hstu.optimiser import ModelOptimiser
from foundation.model import FoundationModel, FoundationOutput
from hypercast.training.random import generator
from streaming.batch import BatchReader, RequestBatch
from streaming.dataset import Dataset
from streaming.requests import Requests, Supervision
from streaming.schema import DatasetConfig
from streaming.workspace import Workspace

LABELLED = {"since": 0, "before": 2**62}


@pytest.fixture(scope="module")
def reader(workspace: Workspace, small: FoundationModel.Config) -> BatchReader:
    return workspace.reader({"all": (workspace.engagements, small.history)})


@pytest.fixture(scope="module")
def requests(workspace: Workspace) -> Requests:
    return workspace.requests(3).slice(0, 12)


@pytest.fixture(scope="module")
def trained(workspace: Workspace, small: FoundationModel.Config, reader: BatchReader) -> FoundationModel:
    """After a few steps that make every embedding and bias count."""
    model = small.build(inputs=workspace.inputs, seed=0).train()
    optimiser = ModelOptimiser.Config(learning_rate=0.05, table_learning_rate=0.5).build(model)
    for batch in reader.batches(workspace.requests(2), size=20, **LABELLED):
        optimiser.step(model.loss(model(batch), batch, surface_weight=1.0))
    return model.eval()


def outputs(output: FoundationOutput) -> list[Tensor]:
    return [getattr(output, field.name) for field in fields(output)]


def assert_same(actual: FoundationOutput, expected: FoundationOutput, order: np.ndarray | slice = slice(None)) -> None:
    for mine, theirs in zip(outputs(actual), outputs(expected), strict=True):
        torch.testing.assert_close(mine, theirs[order], rtol=0, atol=5e-6)


def shuffled(requests: Requests) -> tuple[Requests, np.ndarray]:
    """The candidates of each request in another order, and which is where."""
    order = np.lexsort((np.random.default_rng(0).random(len(requests.item)), requests.owner))
    moved = {name: getattr(requests, name)[order] for name in ("candidate_id", "item_id", "item", "surface", "dense")}
    return replace(requests, **moved, supervision=requests.supervision.take(order)), order


def scrambled(requests: Requests) -> Requests:
    random, supervision = np.random.default_rng(1), requests.supervision
    noise = Supervision(
        label=random.random(supervision.label.shape, dtype=np.float32),
        known_time=random.integers(0, 2**62, supervision.label.shape),
        weight=random.random(len(supervision.weight), dtype=np.float32),
        stratum=random.integers(0, 9, len(supervision.stratum)).astype(np.int8),
    )
    return replace(requests, supervision=noise)


@torch.no_grad()
def test_scoring_each_candidate_alone(trained: FoundationModel, reader: BatchReader, requests: Requests) -> None:
    together = trained(reader.batch(requests))
    one_a_request = requests.impressions()
    assert_same(trained(reader.batch(one_a_request)), together)
    for candidate in (0, 17, 95):
        single = trained(reader.batch(one_a_request.slice(candidate, candidate + 1)))
        assert_same(single, together, slice(candidate, candidate + 1))


@torch.no_grad()
def test_in_any_order(trained: FoundationModel, reader: BatchReader, requests: Requests) -> None:
    other, order = shuffled(requests)
    assert (order != np.arange(len(order))).any()
    assert_same(trained(reader.batch(other)), trained(reader.batch(requests)), order)


@torch.no_grad()
def test_with_supervision_scrambled(trained: FoundationModel, reader: BatchReader, requests: Requests) -> None:
    before, after = reader.batch(requests, **LABELLED), reader.batch(scrambled(requests), **LABELLED)
    assert not before.labels.label_CT.equal(after.labels.label_CT)
    for mine, theirs in zip(outputs(trained(before)), outputs(trained(after)), strict=True):
        assert mine.equal(theirs)


@torch.no_grad()
def test_other_requests_in_the_batch_do_not_matter(
    trained: FoundationModel, reader: BatchReader, requests: Requests
) -> None:
    whole = trained(reader.batch(requests))
    assert_same(trained(reader.batch(requests.slice(4, 9))), whole, slice(32, 72))


@torch.no_grad()
@pytest.mark.parametrize("changed", ["dense_CF", "surface_C", "history", "user", "context"])
def test_what_a_candidate_does_depend_on(
    trained: FoundationModel, reader: BatchReader, requests: Requests, changed: str
) -> None:
    """The tests above would pass for a model that ignores its inputs."""
    batch = reader.batch(requests)
    before = trained(batch).logit_CT
    if changed == "history":
        history = batch.history["all"]
        after = replace(batch, history={"all": replace(history, item_L=history.item_L.flip(0))})
    elif changed == "user":
        after = reader.batch(replace(requests, user=np.roll(requests.user, 1)))
    elif changed == "context":
        after = reader.batch(replace(requests, context=np.roll(requests.context, 1, axis=0)))
    else:
        after = replace(batch, **{changed: getattr(batch, changed).roll(1, 0)})
    assert not torch.allclose(trained(after).logit_CT, before, rtol=0, atol=1e-4)


def test_the_same_seed_gives_the_same_bits(
    workspace: Workspace, small: FoundationModel.Config, reader: BatchReader, requests: Requests
) -> None:
    def run(seed: int) -> list[Tensor]:
        torch.manual_seed(np.random.default_rng().integers(1000))  # the global stream is not used
        model = small.build(inputs=workspace.inputs, seed=seed).train()
        batch = reader.batch(requests, **LABELLED)
        model.loss(model(batch), batch, surface_weight=0.3).backward()
        return [p.grad.to_dense() for p in model.parameters() if p.grad is not None] + outputs(model(batch))

    first, second, other = run(3), run(3), run(4)
    assert all(mine.equal(theirs) for mine, theirs in zip(first, second, strict=True))
    assert not first[-1].equal(other[-1])


def test_same_name_same_value_across_configs(workspace: Workspace, small: FoundationModel.Config) -> None:
    def parameters(config: FoundationModel.Config) -> dict[str, Tensor]:
        return dict(config.build(inputs=workspace.inputs, seed=5).named_parameters())

    one = parameters(small)
    configs = {
        "layers": small.model_copy(update={"stack": HSTUStack.Config(layers=3, heads=4, time_buckets=32)}),
        "tower": small.model_copy(update={"tower": 20, "dropout": 0.0}),
        "history": small.model_copy(update={"history": 30}),
    }
    for config in configs.values():
        other = parameters(config)
        shared = [name for name in one if name in other and one[name].shape == other[name].shape]
        assert len(shared) > len(one) // 2
        assert all(one[name].equal(other[name]) for name in shared)
    # Some parameter is neither zeros nor ones, and comes from the hash of seed and name as documented.
    weight = one["kind.weight"]
    stream = generator(5, "parameter", "kind.weight")
    assert weight.equal(torch.empty(weight.shape).normal_(0.0, 0.02, generator=stream))


def test_shapes(
    trained: FoundationModel,
    small: FoundationModel.Config,
    workspace: Workspace,
    reader: BatchReader,
    requests: Requests,
) -> None:
    output = trained(reader.batch(requests))
    shapes = [tuple(tensor.shape) for tensor in outputs(output)]
    entering = small.tower_shape(workspace.inputs).inputs
    assert shapes == [(96, small.width), (96, entering), (96, small.representation), (96, 2), (96, 2)]
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in outputs(output))


def test_the_main_heads_read_what_is_published(
    trained: FoundationModel, reader: BatchReader, requests: Requests
) -> None:
    output = trained(reader.batch(requests))
    assert output.logit_CT.equal(trained.main_heads(output.penultimate_CR))


def test_a_surface_trains_its_own_head_only(
    workspace: Workspace, small: FoundationModel.Config, reader: BatchReader, requests: Requests
) -> None:
    model = small.build(inputs=workspace.inputs, seed=0).train()
    batch = reader.batch(requests.on_surface(1), **LABELLED)
    model.loss(model(batch), batch, surface_weight=1.0).backward()
    gradient = model.surface_heads.weight.grad
    assert gradient is not None
    assert gradient.any(dim=1).tolist() == [False, False, True, True, False, False]  # by surface, then task


def test_loss_is_over_known_labels(trained: FoundationModel, reader: BatchReader, requests: Requests) -> None:
    def loss(batch: RequestBatch, weight: float) -> float:
        return trained.loss(trained(batch), batch, surface_weight=weight).item()

    known = reader.batch(requests, **LABELLED)
    assert loss(reader.batch(requests), 1.0) == 0.0
    wrong = replace(known.labels, label_CT=torch.where(known.labels.known_CT, known.labels.label_CT, 7.0))
    assert loss(replace(known, labels=wrong), 0.5) == loss(known, 0.5) > 0.0
    main, both = loss(known, 0.0), loss(known, 1.0)
    assert loss(known, 0.5) == pytest.approx((main + both) / 2, rel=1e-5)


@torch.no_grad()
def test_a_new_user_without_history(trained: FoundationModel, reader: BatchReader, requests: Requests) -> None:
    stranger = np.full(len(requests), 10**6)
    strangers = replace(requests, user_id=stranger, user=reader.users.rows(stranger))
    batch = reader.batch(strangers)
    assert len(batch.history["all"].item_L) == 0
    assert all(tensor.isfinite().all() for tensor in outputs(trained(batch)))


@torch.no_grad()
def test_evaluation_changes_no_state(trained: FoundationModel, reader: BatchReader, requests: Requests) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    trained(reader.batch(requests))
    assert all(tensor.equal(before[name]) for name, tensor in trained.state_dict().items())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_data_set_of_ids_only(tiny_dataset: Dataset, small: FoundationModel.Config) -> None:
    """No context, no attributes, no dense features."""
    bare: DatasetConfig = tiny_dataset.config.model_copy(
        update={"context": [], "item_attributes": [], "user_attributes": [], "dense": []}
    )
    workspace = Workspace(Dataset(path=tiny_dataset.path, config=bare))
    full = Workspace(tiny_dataset).requests(2).slice(0, 6)
    requests = replace(full, context=full.context[:, :0], dense=full.dense[:, :0])
    batch = workspace.reader({"all": (workspace.engagements, small.history)}).batch(requests, **LABELLED)
    model = small.build(inputs=workspace.inputs, seed=0).train()
    loss = model.loss(model(batch), batch, surface_weight=1.0)
    loss.backward()
    assert loss.isfinite()


def test_heads_must_divide_the_width() -> None:
    parameters: dict[str, Callable[[], object]] = {
        "5": lambda: FoundationModel.Config(width=64, stack=HSTUStack.Config(heads=5)),
        "3": lambda: FoundationModel.Config(width=8, stack=HSTUStack.Config(heads=3)),
    }
    for heads, make in parameters.items():
        with pytest.raises(pydantic.ValidationError, match=rf"multiple of stack\.heads {heads}"):
            make()
