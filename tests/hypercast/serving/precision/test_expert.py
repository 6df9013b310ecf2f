"""Experts can be compact, too: their calls have more arguments, their tables narrower rows."""

from typing import Any

import pytest
import torch

from experts.fusion import Fusion, TeacherFeatures, Vectors
from experts.model import ExpertModel
from foundation.hstu.vocabulary import BatchVocabulary
from hypercast.serving.precision.compact import Precision, compact
from hypercast.training.random import generator
from streaming.batch import RequestBatch
from streaming.workspace import Workspace
from tests.hypercast.serving.precision.world import never_float32

R = 6


def told(batch: RequestBatch) -> TeacherFeatures:
    stream = torch.Generator().manual_seed(0)
    candidates = len(batch.item_C)
    present_C = (torch.rand(candidates, generator=stream) > 0.3).float()
    vector_CR = torch.randn(candidates, R, generator=stream) * present_C[:, None]
    return TeacherFeatures(
        vectors={"penultimate": Vectors(vector_CR=vector_CR, present_C=present_C)},
        logit_CT=torch.randn(candidates, 2, generator=stream) * present_C[:, None],
        present_C=present_C,
    )


@pytest.fixture(scope="module")
def expert(workspace: Workspace) -> tuple[ExpertModel, list[tuple[Any, ...]]]:
    vocabulary = BatchVocabulary.Config(default=128).build(workspace.inputs).train()
    config = ExpertModel.Config(width=16, history=5, fusion=Fusion.Config(width=8, dropout=0.0), logit_residual=True)
    model = config.build(inputs=workspace.inputs, vocabulary=vocabulary, embedding=R, seed=0)
    reader = workspace.reader({"surface": (workspace.engagements.only(1), 5)})
    requests = workspace.requests(3).on_surface(1).slice(0, 30)
    batches = list(reader.batches(requests, size=10))
    for batch in batches:
        vocabulary(batch)
    vocabulary.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator(0, name)), alpha=0.1)
    return model.eval(), [(batch, vocabulary(batch), told(batch)) for batch in batches]


@pytest.mark.parametrize("kernel", ["bfloat16", "int8"])
def test_an_expert_stays_within_its_bound(expert: tuple[ExpertModel, list[tuple[Any, ...]]], kernel: str) -> None:
    model, calls = expert
    config = Precision.model_validate({"kernels": [kernel], "layer_error": 0.1, "ne_cost_pct": 0.05})
    made = compact(model, config, calls[:2], timer=never_float32)
    assert made.report.ne_cost_pct <= 0.05
    assert made.report.table_ratio == 4 * 16 / (16 / 2 + 4)
    assert any(each.kernel == kernel for each in made.report.of("linear"))
    with torch.no_grad():
        expected, found = model(*calls[2]).logit_CT, made(*calls[2]).logit_CT
    assert not torch.equal(expected, found)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)
    assert torch.equal(made.model.probability(found), found.sigmoid())
