"""Teachers' predictions enter a loss as constants, weighed by hand-computable masks, and the adapter follows labels."""

import copy
import math

import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foundation.hstu.loss import masked_log_loss
from hypercast.training.random import initialise_
from transfer.distill import (
    AdapterLearner,
    AuxiliaryHead,
    KnowledgeDistillation,
    Lesson,
    StudentAdapter,
    scale_gradient,
    scaled_label,
)

TASKS, WIDTH = 2, 3


def lesson(rows: int = 5, *, seed: int = 0, present: list[float] | None = None) -> Lesson:
    stream = torch.Generator().manual_seed(seed)
    known_CT = torch.rand(rows, TASKS, generator=stream) < 0.7
    present_C = torch.tensor(present) if present is not None else (torch.rand(rows, generator=stream) < 0.7).float()
    return Lesson(
        label_CT=torch.randint(2, (rows, TASKS), generator=stream).float() * known_CT,
        known_CT=known_CT,
        teacher_CT=2 * torch.randn(rows, TASKS, generator=stream) * present_C[:, None],
        present_C=present_C,
        weight_C=1 + 9 * torch.rand(rows, generator=stream),
    )


def logits(rows: int = 5, seed: int = 1) -> Tensor:
    made = torch.randn(rows, TASKS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.requires_grad_()


def cross_entropy(logit: float, target: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -target * math.log(probability) - (1 - target) * math.log(1 - probability)


def places(given: Lesson) -> list[tuple[int, int]]:
    return [(c, t) for c, t in given.known_CT.nonzero().tolist()]


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 6), seed=st.integers(0, 99), share=st.floats(0, 1), population=st.booleans())
def test_kd_mixes_both_targets_where_both_are_known(rows: int, seed: int, share: float, population: bool) -> None:
    told, logit_CT = lesson(rows, seed=seed), logits(rows)
    taught = [(c, t) for c, t in places(told) if told.present_C[c]]
    scale = len(taught) / max(sum(float(told.weight_C[c]) for c, _ in taught), 1e-9)
    expected = 0.0
    for c, t in places(told):
        own, soft = float(told.label_CT[c, t]), float(told.teacher_CT[c, t].sigmoid())
        heard = share if (c, t) in taught else 0.0
        weight = float(told.weight_C[c]) * scale if population else 1.0
        said = float(logit_CT[c, t].detach())
        expected += (1 - heard) * cross_entropy(said, own) + heard * weight * cross_entropy(said, soft)
    method = KnowledgeDistillation(config=KnowledgeDistillation.Config(share=share, population=population))
    assert float(method.loss(logit_CT, told)) == pytest.approx(expected / rows, rel=1e-4, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 6),
    seed=st.integers(0, 99),
    weight=st.floats(0, 5),
    scale=st.floats(0.1, 6),
    second=st.one_of(st.none(), st.floats(0, 5)),
)
def test_the_auxiliary_loss_is_the_teachers_term_and_the_adapters(
    rows: int, seed: int, weight: float, scale: float, second: float | None
) -> None:
    told, said_CT, adapted_CT = lesson(rows, seed=seed), logits(rows), logits(rows, seed=2)
    adapter = None if second is None else StudentAdapter.Config(weight=second)
    config = AuxiliaryHead.Config(weight=weight, label_scale=scale, adapter=adapter)
    expected = 0.0
    for c, t in places(told):
        if told.present_C[c]:
            for share, source in ((weight, told.teacher_CT), (second or 0.0, adapted_CT)):
                target = min(1.0, scale * float(source[c, t].sigmoid()))
                expected += share * cross_entropy(float(said_CT[c, t]), target)
    head = AuxiliaryHead(config=config, width=WIDTH, tasks=TASKS)
    loss = head.loss(said_CT, told, adapted_CT)
    assert float(loss.detach()) == pytest.approx(expected / rows, rel=1e-4, abs=1e-6)
    gradient = torch.autograd.grad(loss, adapted_CT, allow_unused=True)[0]
    assert gradient is None  # a target is a constant


def test_scaled_labels_end_at_one() -> None:
    given_CT = torch.tensor([[0.0, 0.1], [0.25, 0.9]])
    assert scaled_label(given_CT, 4.0).tolist() == [[0.0, pytest.approx(0.4)], [1.0, 1.0]]
    assert scaled_label(given_CT, 1.0).equal(given_CT)


@given(scale=st.floats(0, 30, width=32), seed=st.integers(0, 99))
def test_a_scaled_gradient_is_exactly_that_many_times_the_gradient(scale: float, seed: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    x, back = (torch.randn(4, 3, generator=stream) for _ in range(2))
    x.requires_grad_()
    y = scale_gradient(x, scale)
    assert y.equal(x)
    y.backward(back)
    assert x.grad is not None and x.grad.equal(back * scale)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_the_backbone_hears_the_distill_head_beta_times_and_the_head_itself_once(beta: float) -> None:
    def gradients(scale: float) -> tuple[Tensor, Tensor]:
        head = AuxiliaryHead(config=AuxiliaryHead.Config(gradient_scale=scale), width=WIDTH, tasks=TASKS)
        initialise_(head, 0)
        backbone = nn.Linear(WIDTH, WIDTH)
        initialise_(backbone, 1)
        input_CH = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3))
        head.loss(head(backbone(input_CH)), lesson(present=[1.0] * 5)).backward()
        assert backbone.weight.grad is not None and head.read.weight.grad is not None
        return backbone.weight.grad, head.read.weight.grad

    (plain, own), (scaled, same) = gradients(1.0), gradients(beta)
    assert plain.any() and scaled.equal(beta * plain) and same.equal(own)


def test_absent_teachers_and_unknown_labels_teach_nothing() -> None:
    told = lesson(present=[0.0] * 5)
    head = AuxiliaryHead(config=AuxiliaryHead.Config(), width=WIDTH, tasks=TASKS)
    assert float(head.loss(logits(), told).detach()) == 0.0
    assert not told.taught_CT(population=True).any()
    method = KnowledgeDistillation(config=KnowledgeDistillation.Config())
    assert method.loss(logits(), told).equal(masked_log_loss(logits(), told.label_CT, told.known_CT))


def test_weights_shift_importance_and_not_its_sum() -> None:
    told = lesson(present=[1.0] * 5)
    plain, weighted = told.taught_CT(population=False), told.taught_CT(population=True)
    assert weighted.sum() == pytest.approx(float(plain.sum()))
    row_C = plain.any(dim=1)
    ratio_C = weighted.sum(1)[row_C] / plain.sum(1)[row_C] / told.weight_C[row_C]
    torch.testing.assert_close(ratio_C, ratio_C[:1].expand_as(ratio_C))
    assert weighted[~told.known_CT].sum() == 0


def adapter(learning_rate: float = 0.05) -> AdapterLearner:
    made = StudentAdapter(config=StudentAdapter.Config(learning_rate=learning_rate), tasks=TASKS)
    initialise_(made, 0)
    return AdapterLearner(made)


def test_an_adapter_starts_as_the_teacher() -> None:
    told = lesson()
    assert adapter().adapter(told.teacher_CT).equal(told.teacher_CT)


def test_an_adapter_speaks_after_it_has_stepped_and_as_a_constant() -> None:
    told, learner = lesson(20), adapter()
    said = learner.step(told)
    assert not said.requires_grad
    assert not said.equal(told.teacher_CT)  # what it was before the step
    assert said.equal(learner.adapter(told.teacher_CT).detach())


def test_an_adapter_corrects_a_teacher_that_is_off() -> None:
    stream = torch.Generator().manual_seed(0)
    truth_CT = torch.randn(4000, TASKS, generator=stream)
    told = Lesson(
        label_CT=(torch.rand(4000, TASKS, generator=stream) < truth_CT.sigmoid()).float(),
        known_CT=torch.ones(4000, TASKS, dtype=torch.bool),
        teacher_CT=2 * truth_CT - 1.5,  # overconfident, and too low
        present_C=torch.ones(4000),
        weight_C=torch.ones(4000),
    )
    learner = adapter(learning_rate=0.02)
    for _ in range(150):
        said = learner.step(told)
    best, before, after = (
        masked_log_loss(one, told.label_CT, told.known_CT) for one in (truth_CT, told.teacher_CT, said)
    )
    assert after - best < 0.05 * (before - best)


def test_an_adapter_goes_on_with_the_same_bits() -> None:
    straight, resumed = adapter(), adapter()
    straight.step(lesson(20))
    state = copy.deepcopy(straight.state_dict())
    resumed.load_state_dict(state)
    assert straight.step(lesson(20, seed=4)).equal(resumed.step(lesson(20, seed=4)))


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (KnowledgeDistillation.Config, {"share": 1.1}),
        (AuxiliaryHead.Config, {"weight": -1.0}),
        (AuxiliaryHead.Config, {"label_scale": 0.0}),
        (AuxiliaryHead.Config, {"gradient_scale": -0.1}),
        (StudentAdapter.Config, {"hidden": 0}),
    ],
)
def test_values_out_of_range_are_refused(config: type[pydantic.BaseModel], wrong: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(wrong))):
        config(**wrong)
