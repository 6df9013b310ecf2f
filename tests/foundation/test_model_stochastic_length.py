"""The foundation model trains on a part of long histories, and on all of everything else."""

from dataclasses import fields

import pytest
from torch import Tensor

from foundation.hstu.layer import Sequences
from foundation.hstu.stochastic_length import StochasticLength, subsampled_length
from foundation.model import CONTEXT_TOKENS, FoundationModel, FoundationOutput
from hypercast.training.random import get_states, set_states
from streaming.batch import BatchReader
from streaming.requests import Requests
from streaming.workspace import Workspace


@pytest.fixture(scope="module")
def reader(workspace: Workspace, small: FoundationModel.Config) -> BatchReader:
    return workspace.reader({"all": (workspace.engagements, small.history)})


@pytest.fixture(scope="module")
def requests(workspace: Workspace) -> Requests:
    return workspace.requests(3).slice(0, 12)


def outputs(output: FoundationOutput) -> list[Tensor]:
    return [getattr(output, field.name) for field in fields(output)]


def subsampling(small: FoundationModel.Config, alpha: float) -> FoundationModel.Config:
    return small.model_copy(update={"stochastic_length": StochasticLength.Config(alpha=alpha)})


def test_keeping_everything_changes_no_bit(
    workspace: Workspace, small: FoundationModel.Config, reader: BatchReader, requests: Requests
) -> None:
    batch, bits = reader.batch(requests, since=0, before=2**62), []
    for config in (small, subsampling(small, 2.0)):
        model = config.build(inputs=workspace.inputs, seed=3).train()
        output = model(batch)
        model.loss(output, batch, surface_weight=0.3).backward()
        bits.append([p.grad.to_dense() for p in model.parameters() if p.grad is not None] + outputs(output))
    assert all(mine.equal(theirs) for mine, theirs in zip(*bits, strict=True))


def test_history_is_dropped_and_nothing_else(
    workspace: Workspace, small: FoundationModel.Config, reader: BatchReader, requests: Requests
) -> None:
    given: list[tuple[Tensor, Sequences]] = []
    batch = reader.batch(requests)
    for config in (small, subsampling(small, 1.2)):
        model = config.build(inputs=workspace.inputs, seed=3).train()
        model.stack.register_forward_pre_hook(lambda _, arguments: given.append(arguments))
        assert len(model(batch).logit_CT) == len(batch.item_C)
    (tokens_ND, whole), (fewer_ND, fewer) = given
    lengths, kept = (each.offsets.diff() - each.num_targets - CONTEXT_TOKENS for each in (whole, fewer))
    target = subsampled_length(base_length=small.history, alpha=1.2)
    assert lengths.equal(batch.history["all"].offsets.diff())
    assert ((kept == lengths) | (kept == target)).all() and (kept < lengths).any()
    assert fewer.num_targets.equal(whole.num_targets) and fewer.max_seq_len == whole.max_seq_len
    of_request = zip(
        tokens_ND.split(whole.offsets.diff().tolist()), fewer_ND.split(fewer.offsets.diff().tolist()), strict=True
    )
    for (all_nD, some_mD), targets in zip(of_request, whole.num_targets.tolist(), strict=True):
        assert some_mD[:CONTEXT_TOKENS].equal(all_nD[:CONTEXT_TOKENS])
        assert some_mD[-targets:].equal(all_nD[-targets:])
        assert {tuple(token) for token in some_mD.tolist()} <= {tuple(token) for token in all_nD.tolist()}


def test_evaluation_sees_the_whole_history(
    workspace: Workspace, small: FoundationModel.Config, reader: BatchReader, requests: Requests
) -> None:
    batch = reader.batch(requests)
    plain = small.build(inputs=workspace.inputs, seed=3).eval()
    model = subsampling(small.model_copy(update={"dropout": 0.0}), 1.2).build(inputs=workspace.inputs, seed=3)
    evaluated = outputs(model.eval()(batch))
    assert all(mine.equal(theirs) for mine, theirs in zip(evaluated, outputs(plain(batch)), strict=True))
    assert not model.train()(batch).logit_CT.equal(evaluated[2])
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_a_resumed_model_continues_with_the_same_bits(
    workspace: Workspace, small: FoundationModel.Config, reader: BatchReader, requests: Requests
) -> None:
    def steps(model: FoundationModel, count: int) -> list[Tensor]:
        return [model(batch).logit_CT for _ in range(count)]

    batch, config = reader.batch(requests), subsampling(small, 1.2)
    model, twin = (config.build(inputs=workspace.inputs, seed=3).train() for _ in range(2))
    steps(model, 2)
    states, weights = get_states(model), model.state_dict()
    expected = steps(model, 3)
    twin.load_state_dict(weights)
    set_states(twin, states)
    assert all(mine.equal(theirs) for mine, theirs in zip(steps(twin, 3), expected, strict=True))
    assert not expected[0].equal(expected[1])
