"""The embedding enters through a gate where it is present, not at all where it is absent, and nothing goes back."""

import pydantic
import pytest
import torch
from torch import Tensor

from experts.fusion import GatedFusion, TeacherFeatures
from hypercast.training.random import initialise_

EMBEDDING, OWN, OUT, CANDIDATES = 5, 4, 3, 6


def fusion(dropout: float = 0.0, name: str = "fusion") -> GatedFusion:
    made = GatedFusion.Config(width=OUT, dropout=dropout).build(embedding=EMBEDDING, own=OWN, seed=0, name=name)
    initialise_(made, 0)
    with torch.no_grad():
        made.project.bias.fill_(0.5)  # so that zeros in do not make zeros out by themselves
    return made


def teacher(present: list[float]) -> TeacherFeatures:
    stream = torch.Generator().manual_seed(0)
    present_C = torch.tensor(present)
    return TeacherFeatures(
        vector_CR=torch.randn(len(present), EMBEDDING, generator=stream) * present_C[:, None],
        logit_CT=torch.randn(len(present), 2, generator=stream) * present_C[:, None],
        present_C=present_C,
    )


def own() -> Tensor:
    return torch.randn(CANDIDATES, OWN, generator=torch.Generator().manual_seed(1))


def test_zero_where_absent_and_only_there() -> None:
    output = fusion()(teacher([1, 0, 1, 1, 0, 0]), own())
    assert output.shape == (CANDIDATES, OUT)
    assert output.any(dim=1).tolist() == [True, False, True, True, False, False]


def test_what_lies_in_an_absent_row_does_not_matter() -> None:
    given = teacher([1, 0, 1, 1, 0, 0])
    noise = torch.randn(CANDIDATES, EMBEDDING, generator=torch.Generator().manual_seed(2))
    filled = TeacherFeatures(
        vector_CR=given.vector_CR + noise * (1 - given.present_C)[:, None],
        logit_CT=given.logit_CT,
        present_C=given.present_C,
    )
    assert fusion()(filled, own()).equal(fusion()(given, own()))


def test_formula() -> None:
    module, given, own_CE = fusion(), teacher([1] * CANDIDATES), own()
    vector = given.vector_CR
    mean, variance = vector.mean(1, keepdim=True), vector.var(1, keepdim=True, unbiased=False)
    projected = (vector - mean) / (variance + 1e-5).sqrt() @ module.project.weight.T + module.project.bias
    gate = torch.sigmoid(torch.cat([projected, own_CE], dim=1) @ module.gate.weight.T + module.gate.bias)
    torch.testing.assert_close(module(given, own_CE), gate * projected, rtol=1e-5, atol=1e-6)


def test_the_scale_of_the_embedding_does_not_matter() -> None:
    given = teacher([1] * CANDIDATES)
    louder = TeacherFeatures(vector_CR=given.vector_CR * 50, logit_CT=given.logit_CT, present_C=given.present_C)
    torch.testing.assert_close(fusion()(louder, own()), fusion()(given, own()), rtol=1e-3, atol=1e-4)


def test_dropout_is_on_the_embedding_and_only_in_training() -> None:
    given, own_CE = teacher([1] * CANDIDATES), own()
    plain = fusion()(given, own_CE)
    dropping = fusion(dropout=0.5)
    assert not dropping.train()(given, own_CE).equal(plain)
    assert dropping.eval()(given, own_CE).equal(plain)
    assert fusion(dropout=0.5).train()(given, own_CE).equal(fusion(dropout=0.5).train()(given, own_CE))


def test_every_parameter_learns() -> None:
    module = fusion()
    module(teacher([1, 0, 1, 1, 0, 0]), own()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


def test_absent_rows_teach_nothing() -> None:
    module = fusion()
    module(teacher([0] * CANDIDATES), own()).square().sum().backward()
    assert not any(parameter.grad.any() for parameter in module.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_dropout_in_range(dropout: float) -> None:
    with pytest.raises(pydantic.ValidationError):
        GatedFusion.Config(dropout=dropout)
