"""Candidates scored in micro-batches over a cache are scored as by the model itself."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.hstu.layer import HSTUStack
from foundation.inference import CandidateScorer
from foundation.model import FoundationModel, FoundationOutput
from hypercast.training.random import generator
from streaming.batch import BatchReader, RequestBatch
from streaming.requests import Requests
from streaming.workspace import Workspace
from tests.foundation.asking import rows_projected

OPTIONS = {
    "plain": {},
    "near": {"max_distance": 3},
    "near with tail": {"max_distance": 3, "full_tail": 2},
    "no times": {"time_buckets": 0},
    "one layer": {"layers": 1},
}


@pytest.fixture(scope="module")
def reader(workspace: Workspace, small: FoundationModel.Config) -> BatchReader:
    return workspace.reader({"all": (workspace.engagements, small.history)})


@pytest.fixture(scope="module")
def requests(workspace: Workspace) -> Requests:
    return workspace.requests(3).slice(0, 9)


@pytest.fixture(scope="module")
def models(workspace: Workspace, small: FoundationModel.Config, reader: BatchReader) -> dict[str, FoundationModel]:
    """By options of the stack; weights large enough that every one of them counts, and ids that are known."""
    made = {}
    for name, options in OPTIONS.items():
        stack = HSTUStack.Config(**{**small.stack.model_dump(), **options})
        model = small.model_copy(update={"stack": stack}).build(inputs=workspace.inputs, seed=0).train()
        model.vocabulary(reader.batch(workspace.requests(2)))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(0, parameter_name)))
        made[name] = model.eval()
    return made


def outputs(output: FoundationOutput) -> list[Tensor]:
    return [getattr(output, field.name) for field in fields(output)]


def assert_same(actual: FoundationOutput, expected: FoundationOutput, order: np.ndarray | slice = slice(None)) -> None:
    for mine, theirs in zip(outputs(actual), outputs(expected), strict=True):
        torch.testing.assert_close(mine, theirs[order], rtol=1e-4, atol=1e-5)


def score(model: FoundationModel, batch: RequestBatch, micro_batch: int = 5) -> FoundationOutput:
    return CandidateScorer.Config(micro_batch=micro_batch).build(model).score(batch)


@pytest.mark.parametrize("options", list(OPTIONS))
@settings(max_examples=8, deadline=None)
@given(micro_batch=st.integers(1, 80), first=st.integers(0, 8), count=st.integers(1, 9))
def test_any_micro_batch_is_the_uncached_model(
    models: dict[str, FoundationModel],
    reader: BatchReader,
    requests: Requests,
    options: str,
    micro_batch: int,
    first: int,
    count: int,
) -> None:
    batch = reader.batch(requests.slice(first, first + count))
    with torch.no_grad():
        expected = models[options](batch)
    assert_same(score(models[options], batch, micro_batch), expected)
    assert expected.logit_CT.std() > 0.01


@pytest.mark.parametrize("micro_batch", [1, 7, 1000])
def test_candidates_in_any_order(
    models: dict[str, FoundationModel], reader: BatchReader, requests: Requests, micro_batch: int
) -> None:
    order = np.lexsort((np.random.default_rng(0).random(len(requests.item)), requests.owner))
    moved = {name: getattr(requests, name)[order] for name in ("candidate_id", "item_id", "item", "surface", "dense")}
    other = replace(requests, **moved, supervision=requests.supervision.take(order))
    assert (order != np.arange(len(order))).any()
    model = models["plain"]
    actual = score(model, reader.batch(other), micro_batch)
    assert_same(actual, score(model, reader.batch(requests), micro_batch), order)


def test_history_is_encoded_once_and_candidates_in_bounded_parts(
    models: dict[str, FoundationModel], reader: BatchReader, requests: Requests
) -> None:
    batch = reader.batch(requests)
    with rows_projected(models["plain"]) as rows:
        score(models["plain"], batch, 10)
    prefix, *parts = rows
    assert prefix == 2 * len(batch) + len(batch.history["all"].item_L)
    assert sum(parts) == len(batch.item_C) and max(parts) == 10


def test_requests_without_candidates(
    models: dict[str, FoundationModel], reader: BatchReader, requests: Requests
) -> None:
    """All of them, and every second one."""
    model = models["plain"]
    shapes = [tensor.shape[1:] for tensor in outputs(score(model, reader.batch(requests)))]
    for keep in (np.zeros(len(requests.owner), bool), requests.owner % 2 == 0):
        names = ("candidate_id", "item_id", "item", "surface", "dense")
        some = replace(
            requests,
            offsets=np.concatenate([[0], np.cumsum(np.bincount(requests.owner[keep], minlength=len(requests)))]),
            **{name: getattr(requests, name)[keep] for name in names},
            supervision=requests.supervision.take(np.flatnonzero(keep)),
        )
        batch = reader.batch(some)
        with torch.no_grad():
            expected = model(batch)
        actual = score(model, batch, 3)
        assert_same(actual, expected)
        assert [tensor.shape for tensor in outputs(actual)] == [(keep.sum(), *shape) for shape in shapes]


def test_a_model_in_training_mode_is_refused(
    workspace: Workspace, small: FoundationModel.Config, reader: BatchReader, requests: Requests
) -> None:
    model = small.build(inputs=workspace.inputs, seed=0).train()
    with pytest.raises(RuntimeError, match=r"call model\.eval\(\) before scoring"):
        score(model, reader.batch(requests))
