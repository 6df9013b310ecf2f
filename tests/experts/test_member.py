"""How one arm learns: the serving head from true labels only, the adapter first, the teacher never."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from experts.arms import ArmName, ArmsConfig
from experts.fusion import Fusion
from experts.member import Member
from experts.model import ExpertModel, ExpertOutput
from experts.steps import ExpertBatch, SurfaceLearner
from foundation.hstu.optimiser import ModelOptimiser
from foundation.hstu.vocabulary import BatchVocabulary
from hypercast.pins import Pin
from hypercast.store.tae_log import TaeLog
from hypercast.tensors import digest
from hypercast.training import checkpoint
from streaming.workspace import Workspace
from transfer.distill import AuxiliaryHead, Lesson

AUXILIARY = ("aux_head", "aux_head_adapter", "tae_aux_head_adapter")
Make = Callable[..., Member]


@pytest.fixture
def learner(
    workspace: Workspace,
    small: ExpertModel.Config,
    sizes: BatchVocabulary.Config,
    log: TaeLog,
    embedding: int,
    tmp_path,
) -> SurfaceLearner:
    config = SurfaceLearner.Config(batch_size=16, model=small, vocabulary=sizes, arms=["control"])
    return SurfaceLearner(
        config=config,
        surfaces=["surface_1"],
        workspace=workspace,
        log=log,
        pin=Pin(expert="surface_1", lineage="FM"),
        embedding=embedding,
        seeds=[0],
        run=tmp_path,
    )


@pytest.fixture
def batches(learner: SurfaceLearner, workspace: Workspace) -> list[ExpertBatch]:
    found = list(learner.batches(workspace.dataset.windows[1]))
    assert all(batch.lesson.present_C.all() and batch.lesson.known_CT.any() for batch in found)
    return found


@pytest.fixture
def member(learner: SurfaceLearner, small: ExpertModel.Config, embedding: int) -> Make:
    def make(arm: ArmName, **settings: object) -> Member:
        arms = ArmsConfig(arms=[arm], model=small, fusion=Fusion.Config(width=4, dropout=0.2), **settings)
        inputs = learner.workspace.inputs
        (config,) = arms.models(inputs=inputs, widths={"penultimate": embedding}).values()
        model = config.build(inputs=inputs, vocabulary=learner.vocabulary, embedding=embedding, seed=0)
        return Member(model=model, optimiser=ModelOptimiser.Config(learning_rate=0.01), seed=0)

    return make


def step(member: Member, batch: ExpertBatch) -> Tensor:
    return member.step(batch.requests, batch.slots, batch.teacher, batch.lesson)


def gradients(member: Member, batch: ExpertBatch, *, weight: float = 1.0) -> dict[str, Tensor]:
    """Of the teacher's part of the loss alone, by dense parameter."""
    model = member.model.train()
    adapted_CT = member.adapter.step(batch.lesson) if member.adapter is not None else None
    said = model(batch.requests, batch.slots, batch.teacher)
    assert model.distil_head is not None and said.distilled_CT is not None
    named = {name: value for name, value in model.named_parameters() if not name.startswith("table")}
    loss = weight * model.distil_head.loss(said.distilled_CT, batch.lesson, adapted_CT)
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("arm", AUXILIARY)
def test_the_serving_head_hears_nothing_of_the_teacher(arm: ArmName, member: Make, batches: list[ExpertBatch]) -> None:
    found = gradients(member(arm), batches[0])
    assert not found["heads.weight"].any() and not found["heads.bias"].any()
    assert found["distil_head.read.weight"].any() and found["backbone.layers.0.weight"].any()


@pytest.mark.parametrize("arm", AUXILIARY)
def test_without_gradient_into_the_backbone_an_expert_serves_as_if_there_were_no_teacher(
    arm: ArmName, member: Make, batches: list[ExpertBatch]
) -> None:
    """A gradient of the whole network that was clipped would mix the two; so it is not, here."""
    mine = member(arm, aux_head=AuxiliaryHead.Config(gradient_scale=0.0))
    plain = member("tae" if arm.startswith("tae") else "control")
    for one in (mine, plain):
        one.optimiser = ModelOptimiser.Config(learning_rate=0.01, gradient_clip=1e9).build(one.model)
        for batch in batches:
            step(one, batch)
    state = mine.model.state_dict()
    assert digest({name: state[name] for name in plain.model.state_dict()}) == digest(plain.model.state_dict())


def test_with_it_the_teacher_moves_the_backbone(member: Make, batches: list[ExpertBatch]) -> None:
    taught, plain = member("aux_head"), member("control")
    for one in (taught, plain):
        step(one, batches[0])
    assert not taught.model.backbone.layers[0].weight.equal(plain.model.backbone.layers[0].weight)


@pytest.mark.parametrize("beta", [0.5, 2.0, 4.0])
def test_the_backbone_hears_beta_times_as_much(beta: float, member: Make, batches: list[ExpertBatch]) -> None:
    plain, scaled = (
        gradients(member("aux_head", aux_head=AuxiliaryHead.Config(gradient_scale=one)), batches[0])
        for one in (1.0, beta)
    )
    for name, value in plain.items():
        expected = value if name.startswith("distil_head") else beta * value
        assert scaled[name].equal(expected), name  # powers of two: nothing rounds


def test_the_adapter_steps_before_the_student(
    member: Make, batches: list[ExpertBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, order = member("aux_head_adapter"), []
    assert mine.adapter is not None
    seen: list[Tensor | None] = []
    adapt, learn, loss = mine.adapter.step, mine.optimiser.step, mine.loss

    def watched(said: ExpertOutput, lesson: Lesson, adapted_CT: Tensor | None) -> Tensor:
        seen.append(adapted_CT)
        return loss(said, lesson, adapted_CT)

    monkeypatch.setattr(mine.adapter, "step", lambda lesson: (order.append("adapter"), adapt(lesson))[1])
    monkeypatch.setattr(mine.optimiser, "step", lambda value: (order.append("student"), learn(value))[1])
    monkeypatch.setattr(
        mine, "loss", lambda said, lesson, adapted: (seen.append(adapted), loss(said, lesson, adapted))[1]
    )
    step(mine, batches[0])
    assert order == ["adapter", "student"]
    (target,) = seen
    assert target is not None and not target.requires_grad
    assert target.equal(mine.adapter.adapter(batches[0].lesson.teacher_CT).detach())  # the student moved nothing of it


@pytest.mark.parametrize("arm", ["kd", *AUXILIARY])
def test_another_teacher_makes_another_expert_and_nothing_goes_back(
    arm: ArmName, member: Make, batches: list[ExpertBatch]
) -> None:
    batch = batches[0]
    told = batch.lesson.teacher_CT
    kept = told.clone()
    shuffled = told[torch.randperm(len(told), generator=torch.Generator().manual_seed(0))]
    mine, theirs = member(arm), member(arm)
    step(mine, batch)
    lesson = replace(batch.lesson, teacher_CT=shuffled)
    theirs.step(batch.requests, batch.slots, batch.teacher, lesson)
    assert not mine.model.backbone.layers[0].weight.equal(theirs.model.backbone.layers[0].weight)
    assert told.equal(kept) and not told.requires_grad and told.grad is None


@pytest.mark.parametrize("arm", AUXILIARY)
def test_the_distill_head_costs_nothing_in_serving(arm: ArmName, member: Make, batches: list[ExpertBatch]) -> None:
    made, batch = member(arm), batches[0]
    assert made.model.eval()(batch.requests, batch.slots, batch.teacher).distilled_CT is None
    assert made.model.train()(batch.requests, batch.slots, batch.teacher).distilled_CT is not None


def test_a_member_goes_on_with_the_same_bits(member: Make, batches: list[ExpertBatch]) -> None:
    straight, resumed = member("tae_aux_head_adapter"), member("tae_aux_head_adapter")
    step(straight, batches[0])
    found, skeleton = checkpoint.pack(straight.state_dict())
    resumed.load_state_dict(checkpoint.unpack({name: value.clone() for name, value in found.items()}, skeleton))
    for one in (straight, resumed):
        step(one, batches[1])
    mine, theirs = (checkpoint.pack(one.state_dict()) for one in (straight, resumed))
    assert digest(mine[0]) == digest(theirs[0]) and mine[1] == theirs[1]
