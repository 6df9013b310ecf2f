"""GESR sees the past by three branches, gates them, and knows nothing of other candidates or of labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experts.backbone.gesr import BRANCHES, GESR
from experts.backbone.matching import match_counts
from experts.backbone.parts import Parts, Shapes
from hypercast.training.random import initialise_
from streaming.requests import Requests
from streaming.workspace import Workspace


@pytest.fixture(scope="module")
def gesr(embedder) -> GESR:
    backbone = GESR.Config(hidden=[12, 6]).build(embedder.shapes)
    initialise_(backbone, 0)
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3, generator=stream)
    return backbone.eval()


@pytest.fixture(scope="module")
def requests(workspace: Workspace) -> Requests:
    return workspace.requests(3).slice(0, 25)


def score(gesr: GESR, parts: Parts) -> Tensor:
    with torch.no_grad():
        return gesr(parts)


def test_a_linear_head_reads_the_sum_of_gated_logits(gesr, embedder, reader, requests) -> None:
    """logit = primary logit + sum of gate_k * logit_k, the paper's fusion, for whatever head."""
    parts = embedder(reader.batch(requests))
    head = nn.Linear(gesr.width, 2)
    initialise_(head, 3)
    with torch.no_grad():
        primary, *branches = gesr.tower(parts.flat), *gesr.branches(parts, gesr._events(parts.past))
        gates = torch.sigmoid(gesr.gate(torch.cat([primary, *branches], dim=1)))
        weights = head.weight.split([each.shape[1] for each in (primary, *branches)], dim=1)
        logit = primary @ weights[0].T + head.bias
        for index, branch in enumerate(branches):
            logit = logit + gates[:, index, None] * (branch @ weights[1 + index].T)
        torch.testing.assert_close(head(gesr(parts)), logit, rtol=1e-4, atol=1e-5)
    assert len(branches) == len(BRANCHES)
    assert gates.std(dim=0).min() > 0  # a gate is each candidate's own


def test_hard_matching_reads_logarithms_of_counts(gesr, embedder, reader, requests) -> None:
    past = embedder(reader.batch(requests)).past
    counts = match_counts(past)
    assert counts.max() > 1
    with torch.no_grad():
        # Logarithms of one library differ in the last bit between machines, by how many are taken at once.
        torch.testing.assert_close(gesr.hard(past), gesr.hard.layers((1 + counts.float()).log()), rtol=1e-5, atol=1e-6)


def test_cross_attention_is_two_softmaxes(gesr, embedder, reader, requests) -> None:
    parts = embedder(reader.batch(requests))
    past, cross = parts.past, gesr.cross
    with torch.no_grad():
        event_LD = gesr._events(past)
        actual = cross(parts, event_LD)
        rows = []
        for index, request in enumerate(past.owner_C.tolist()):
            events = event_LD[past.history.offsets[request] : past.history.offsets[request + 1]]
            key, value = cross.event_key_value(events).chunk(2, dim=1)
            scores = key @ cross.item_asks(parts.fields["candidate"][index]) / 8**0.5
            seen = [scores.softmax(0) @ value]
            sides = [cross.item_key_value[name](parts.fields[name][index]).chunk(2) for name in ("candidate", "dense")]
            scores = torch.stack([key for key, _ in sides]) @ cross.user_asks(parts.fields["context"][index]) / 8**0.5
            seen.append(scores.softmax(0) @ torch.stack([value for _, value in sides]))
            rows.append(cross.output(torch.cat(seen)))
    torch.testing.assert_close(actual, torch.stack(rows), rtol=1e-4, atol=1e-5)


def test_scoring_each_candidate_alone(gesr, embedder, reader, requests) -> None:
    together = score(gesr, embedder(reader.batch(requests)))
    owner = requests.owner
    columns = {name: getattr(requests, name)[owner] for name in ("request_id", "user_id", "user", "time", "context")}
    alone = replace(requests, **columns, tags={}, offsets=np.arange(len(owner) + 1))
    torch.testing.assert_close(score(gesr, embedder(reader.batch(alone))), together, rtol=0, atol=1e-5)


def test_no_history(gesr, embedder, workspace, reader) -> None:
    """Before anything happened: finite, and no candidate matches."""
    first = workspace.requests(workspace.dataset.windows[0].index).slice(0, 5)
    requests = replace(first, time=np.zeros_like(first.time))
    parts = embedder(reader.batch(requests))
    assert len(parts.past.history.item_L) == 0
    assert torch.isfinite(score(gesr, parts)).all()
    assert not match_counts(parts.past).any()


@pytest.mark.parametrize("branch", BRANCHES)
def test_each_branch_reads_the_past(branch: str, gesr, embedder, reader, requests) -> None:
    parts = embedder(reader.batch(requests))
    history = parts.past.history
    turned = replace(parts, past=replace(parts.past, history=replace(history, item_L=history.item_L.roll(3))))
    with torch.no_grad():
        one, other = (gesr.branches(each, gesr._events(each.past))[BRANCHES.index(branch)] for each in (parts, turned))
    assert not one.allclose(other)


def test_every_parameter_learns(embedder, reader, requests) -> None:
    backbone = GESR.Config(hidden=[12, 6]).build(embedder.shapes)
    initialise_(backbone, 0)
    backbone(embedder(reader.batch(requests))).square().sum().backward()
    silent = [name for name, each in backbone.named_parameters() if each.grad is None or not each.grad.any()]
    assert silent == []


def test_refuses_what_it_cannot_attend_to(embedder) -> None:
    shapes = embedder.shapes
    without = {"candidate": 8, "dense": 2}
    with pytest.raises(ValueError, match="parts 'candidate' and 'context'"):
        GESR.Config().build(replace(shapes, fields=without))
    with pytest.raises(ValueError, match="needs a history"):
        GESR.Config().build(replace(shapes, history=0))
    with pytest.raises(ValueError, match=r"multiple of stack\.heads"):
        GESR.Config.model_validate({"stack": {"heads": 3}}).build(replace(shapes))
    assert isinstance(shapes, Shapes)
