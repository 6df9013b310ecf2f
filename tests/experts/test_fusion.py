"""The embedding enters where it is present, not at all where it is absent, by each kind's own formula."""

import pydantic
import pytest
import torch
from torch import Tensor

from experts.fusion import TOKENS, Fusion, GatedFusion, TeacherFeatures, Vectors
from hypercast.training.random import initialise_

EMBEDDING, OWN, OUT, CANDIDATES = 5, 4, 3, 6


KINDS = ("gate", "concat", "cross_attention")


def fusion(dropout: float = 0.0, name: str = "fusion", kind: str = "gate") -> Fusion:
    config = Fusion.Config(kind=kind, width=OUT, dropout=dropout)
    made = config.build(embedding=EMBEDDING, own=OWN, seed=0, name=name)
    initialise_(made, 0)
    with torch.no_grad():  # so that zeros in do not make zeros out by themselves
        (made.key_value if kind == "cross_attention" else made.project).bias.fill_(0.5)
    return made


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def teacher(present: list[float]) -> Vectors:
    stream = torch.Generator().manual_seed(0)
    present_C = torch.tensor(present)
    vector_CR = torch.randn(len(present), EMBEDDING, generator=stream) * present_C[:, None]
    return Vectors(vector_CR=vector_CR, present_C=present_C)


def own() -> Tensor:
    return torch.randn(CANDIDATES, OWN, generator=torch.Generator().manual_seed(1))


def test_zero_where_absent_and_only_there(kind: str) -> None:
    output = fusion(kind=kind)(teacher([1, 0, 1, 1, 0, 0]), own())
    assert output.shape == (CANDIDATES, OUT)
    assert output.any(dim=1).tolist() == [True, False, True, True, False, False]


def test_what_lies_in_an_absent_row_does_not_matter(kind: str) -> None:
    given = teacher([1, 0, 1, 1, 0, 0])
    noise = torch.randn(CANDIDATES, EMBEDDING, generator=torch.Generator().manual_seed(2))
    filled = Vectors(
        vector_CR=given.vector_CR + noise * (1 - given.present_C)[:, None],
        present_C=given.present_C,
    )
    made = fusion(kind=kind)
    assert made(filled, own()).equal(made(given, own()))


def normalised(vector: Tensor) -> Tensor:
    mean, variance = vector.mean(1, keepdim=True), vector.var(1, keepdim=True, unbiased=False)
    return (vector - mean) / (variance + 1e-5).sqrt()


def test_concat_is_a_projection() -> None:
    module, given = fusion(kind="concat"), teacher([1] * CANDIDATES)
    expected = normalised(given.vector_CR) @ module.project.weight.T + 0.5
    torch.testing.assert_close(module(given, own()), expected, rtol=1e-5, atol=1e-6)


def test_cross_attention_asks_the_tokens_of_the_embedding() -> None:
    module, given, own_CE = fusion(kind="cross_attention"), teacher([1] * CANDIDATES), own()
    rows = []
    for vector, mine in zip(normalised(given.vector_CR), own_CE, strict=True):
        key, value = (module.key_value.weight @ vector + 0.5).reshape(2, TOKENS, OUT)
        query = module.query.weight @ mine + module.query.bias
        score = torch.stack([torch.dot(query, one) / OUT**0.5 for one in key])
        rows.append(sum(share * one for share, one in zip(score.exp() / score.exp().sum(), value, strict=True)))
    torch.testing.assert_close(module(given, own_CE), torch.stack(rows), rtol=1e-5, atol=1e-6)


def test_the_gate_reads_both_sides() -> None:
    module, given, own_CE = fusion(), teacher([1] * CANDIDATES), own()
    projected = normalised(given.vector_CR) @ module.project.weight.T + module.project.bias
    gate = torch.sigmoid(torch.cat([projected, own_CE], dim=1) @ module.gate.weight.T + module.gate.bias)
    torch.testing.assert_close(module(given, own_CE), gate * projected, rtol=1e-5, atol=1e-6)


def test_the_scale_of_the_embedding_does_not_matter(kind: str) -> None:
    given, made = teacher([1] * CANDIDATES), fusion(kind=kind)
    louder = Vectors(vector_CR=given.vector_CR * 50, present_C=given.present_C)
    torch.testing.assert_close(made(louder, own()), made(given, own()), rtol=1e-3, atol=1e-4)


def test_dropout_is_on_the_embedding_and_only_in_training() -> None:
    given, own_CE = teacher([1] * CANDIDATES), own()
    plain = fusion()(given, own_CE)
    dropping = fusion(dropout=0.5)
    assert not dropping.train()(given, own_CE).equal(plain)
    assert dropping.eval()(given, own_CE).equal(plain)
    assert fusion(dropout=0.5).train()(given, own_CE).equal(fusion(dropout=0.5).train()(given, own_CE))


def test_every_parameter_learns(kind: str) -> None:
    module = fusion(kind=kind)
    module(teacher([1, 0, 1, 1, 0, 0]), own()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


def test_absent_rows_teach_nothing(kind: str) -> None:
    module = fusion(kind=kind)
    module(teacher([0] * CANDIDATES), own()).square().sum().backward()
    assert not any(parameter.grad.any() for parameter in module.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_dropout_in_range(dropout: float) -> None:
    with pytest.raises(pydantic.ValidationError):
        GatedFusion.Config(dropout=dropout)


def test_the_gate_is_the_default() -> None:
    assert isinstance(Fusion.Config().build(embedding=EMBEDDING, own=OWN, seed=0, name="fusion"), GatedFusion)
    with pytest.raises(pydantic.ValidationError, match="'gate', 'concat' or 'cross_attention'"):
        Fusion.Config(kind="sum")  # type: ignore[arg-type]


def test_rows_of_features_are_rows_of_each_part() -> None:
    stream = torch.Generator().manual_seed(0)
    given = TeacherFeatures(
        vectors={"user": teacher([1, 0, 1, 1]), "past": teacher([0, 1, 1, 0])},
        logit_CT=torch.randn(4, 2, generator=stream),
        present_C=torch.tensor([1.0, 0, 1, 1]),
    )
    part = given[1:3]
    assert part.logit_CT.equal(given.logit_CT[1:3]) and part.present_C.tolist() == [0, 1]
    for name, each in given.vectors.items():
        assert part.vectors[name].vector_CR.equal(each.vector_CR[1:3])
        assert part.vectors[name].present_C.equal(each.present_C[1:3])


def test_features_of_parts_are_joined_as_they_were_cut() -> None:
    stream = torch.Generator().manual_seed(0)
    given = TeacherFeatures(
        vectors={"user": teacher([1, 0, 1, 1]), "past": teacher([0, 1, 1, 0])},
        logit_CT=torch.randn(4, 2, generator=stream),
        present_C=torch.tensor([1.0, 0, 1, 1]),
    )
    whole = TeacherFeatures.joined([given[0:1], given[1:1], given[1:4]])
    assert whole.logit_CT.equal(given.logit_CT) and whole.present_C.equal(given.present_C)
    assert list(whole.vectors) == ["user", "past"]
    for name, each in given.vectors.items():
        assert whole.vectors[name].vector_CR.equal(each.vector_CR)
        assert whole.vectors[name].present_C.equal(each.present_C)
