"""The arms differ by what the foundation model gives them, and by nothing else."""

import re
from dataclasses import replace
from typing import Any, get_args

import pydantic
import pytest
import torch
from torch import nn

from experts.arms import (
    ARMS,
    CONTROL,
    CONTROL_MATCHED,
    LOGIT_RESIDUAL,
    MODES,
    TAE,
    TREATED,
    ArmName,
    ArmsConfig,
    dense_parameters,
    widened,
)
from experts.backbone.plain import Plain
from experts.calibration import PlattCalibration
from experts.cohort import CohortTasks
from experts.fusion import Fusion
from experts.model import ExpertModel
from foundation.hstu.tower import TowerShape
from foundation.hstu.vocabulary import BatchVocabulary
from streaming.dataset import Dataset
from streaming.errors import ConfigError
from streaming.labels.plan import LabelPlan
from streaming.labels.policy import FakeNegative
from streaming.workspace import Workspace
from transfer.distill import AuxiliaryHead, KnowledgeDistillation, StudentAdapter
from transfer.gain import BLENDED, FM_HEAD, FM_SINGLE_SURFACE, LIGHTGBM, LIGHTGBM_TREATED, PAIRS

DEFAULT_EMBEDDING = 64


def configs(
    workspace: Workspace, base: ExpertModel.Config, embedding: int = DEFAULT_EMBEDDING
) -> dict[str, ExpertModel.Config]:
    arms = ArmsConfig(model=base, cross_history=64)
    return arms.models(inputs=workspace.inputs, widths={"penultimate": embedding})


def built(
    config: ExpertModel.Config, workspace: Workspace, *, embedding: int = DEFAULT_EMBEDDING, seed: int = 0
) -> ExpertModel:
    vocabulary = BatchVocabulary.Config(default=16).build(workspace.inputs)
    return config.build(inputs=workspace.inputs, vocabulary=vocabulary, embedding=embedding, seed=seed)


def count_by_hand(config: ExpertModel.Config, workspace: Workspace, embedding: int) -> int:
    """Parameters of the model as it is built for a run, outside the embedding tables."""
    model = built(config, workspace, embedding=embedding)
    tables = {id(parameter) for parameter in model.table.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


def test_what_each_arm_has(workspace: Workspace) -> None:
    arms = configs(workspace, ExpertModel.Config())
    assert tuple(arms) == ARMS
    assert arms[CONTROL] == ExpertModel.Config()
    has = {name: (arm.fusion is not None, arm.logit_residual, arm.cross_history) for name, arm in arms.items()}
    assert has == {
        CONTROL: (False, False, 0),
        CONTROL_MATCHED: (False, False, 64),
        TAE: (True, False, 0),
        LOGIT_RESIDUAL: (False, True, 0),
        TREATED: (True, True, 0),
    }


@pytest.mark.parametrize("embedding", [32, 64, 256])
@pytest.mark.parametrize(
    "base",
    [
        ExpertModel.Config(),
        ExpertModel.Config(width=8),
        ExpertModel.Config(backbone=Plain.Config(hidden=[128, 64, 32])),
        ExpertModel.Config(backbone=Plain.Config(hidden=[48])),
    ],
    ids=["default", "narrow", "deep", "shallow"],
)
def test_the_matched_control_has_at_least_the_parameters_of_treated(
    workspace: Workspace, base: ExpertModel.Config, embedding: int
) -> None:
    arms = configs(workspace, base, embedding)
    treated, matched = (count_by_hand(arms[arm], workspace, embedding) for arm in (TREATED, CONTROL_MATCHED))
    assert treated <= matched <= 1.03 * treated


def test_widening_is_the_least_that_is_enough(workspace: Workspace) -> None:
    base = ExpertModel.Config()
    for wanted in (1, 20_000, 20_001, 35_000):
        config = widened(base, to=wanted, inputs=workspace.inputs, embedding=64)
        first, *rest = config.backbone.hidden
        assert dense_parameters(config, workspace.inputs, 64) >= wanted
        assert rest == base.backbone.hidden[1:]
        if first > base.backbone.hidden[0]:
            less = config.model_copy(update={"backbone": Plain.Config(hidden=[first - 1, *rest])})
            assert dense_parameters(less, workspace.inputs, 64) < wanted
        else:
            assert config == base


def test_parameters_are_counted_without_tables(workspace: Workspace) -> None:
    for config in configs(workspace, ExpertModel.Config()).values():
        expected = count_by_hand(config, workspace, DEFAULT_EMBEDDING)
        assert dense_parameters(config, workspace.inputs, DEFAULT_EMBEDDING) == expected


def test_arms_share_initial_values(workspace: Workspace) -> None:
    """All parameters of the same name and shape, in every pair of arms."""
    models: dict[str, dict[str, nn.Parameter]] = {
        name: dict(built(config, workspace, seed=7).named_parameters())
        for name, config in configs(workspace, ExpertModel.Config()).items()
    }
    for mine in models.values():
        for theirs in models.values():
            shared = [name for name in mine if name in theirs and mine[name].shape == theirs[name].shape]
            assert {"attention.query.weight", "heads.weight", "heads.bias"} <= set(shared)
            assert all(mine[name].equal(theirs[name]) for name in shared)
    assert models[CONTROL].keys() < models[TREATED].keys()
    other = built(ExpertModel.Config(), workspace, seed=8)
    assert not other.attention.query.weight.equal(models[CONTROL]["attention.query.weight"])


def test_an_arm_with_nothing_from_the_teacher_predicts_as_control(workspace: Workspace) -> None:
    """``logit_residual`` with logits of zero is ``control``, bit by bit: the extra module shifts nothing."""
    arms = configs(workspace, ExpertModel.Config())
    control, residual = (built(arms[name], workspace, seed=7).state_dict() for name in (CONTROL, LOGIT_RESIDUAL))
    assert set(residual) - set(control) == {"teacher_factor"}
    assert residual["teacher_factor"].equal(torch.ones(2))
    assert all(residual[name].equal(value) for name, value in control.items())


def test_every_name_is_a_mode_and_every_mode_a_name() -> None:
    assert {*MODES, CONTROL_MATCHED} == set(get_args(ArmName))
    beside = {BLENDED, FM_HEAD, FM_SINGLE_SURFACE, LIGHTGBM, LIGHTGBM_TREATED}  # predicted beside a run, by no expert
    assert set(get_args(ArmName)) - {CONTROL} == {arm for arm, _ in PAIRS} - beside


def test_each_mode_is_one_name(workspace: Workspace) -> None:
    widths = {"penultimate": 64, "sequence": 32, "user": 32, "past": 64}
    base = ExpertModel.Config(width=8)
    tower = TowerShape(inputs=20, hidden=8, representation=6)
    arms = ArmsConfig(arms=list(MODES), model=base).models(inputs=workspace.inputs, widths=widths, tower=tower)
    assert list(arms) == list(MODES)
    kinds = {name: arm.fusion and (arm.fusion.kind, arm.representation) for name, arm in arms.items()}
    assert kinds == dict.fromkeys(MODES) | {
        "user_embedding": ("gate", "user"),
        "tae": ("gate", "penultimate"),
        "tae_sequence": ("gate", "sequence"),
        "tae_concat": ("concat", "penultimate"),
        "tae_cross_attention": ("cross_attention", "penultimate"),
        "treated": ("gate", "penultimate"),
        "tae_aux_head_adapter": ("gate", "penultimate"),
        "tae_kd": ("gate", "penultimate"),
        "tae_history": ("gate", "past"),
        "tae_c2al": ("gate", "penultimate"),
    }
    learns = {name: arm.distillation for name, arm in arms.items() if arm.distillation is not None}
    with_adapter = AuxiliaryHead.Config(adapter=StudentAdapter.Config())
    assert learns == {
        "kd": KnowledgeDistillation.Config(),
        "aux_head": AuxiliaryHead.Config(),
        "aux_head_adapter": with_adapter,
        "tae_kd": KnowledgeDistillation.Config(),
        "tae_aux_head_adapter": with_adapter,
    }
    assert {name for name, arm in arms.items() if arm.logit_residual} == {LOGIT_RESIDUAL, TREATED}
    assert {name for name, arm in arms.items() if arm.cohorts == CohortTasks.Config()} == {"c2al", "tae_c2al"}
    assert {name for name, arm in arms.items() if arm.tower == tower} == {"finetune"}
    shared = {"tower": None, "fusion": None, "representation": "penultimate", "logit_residual": False}
    shared |= {"distillation": None, "cohorts": None}
    assert all(arm.model_copy(update=shared) == base for arm in arms.values())


def test_settings_are_shared_by_the_arms_that_have_them(workspace: Workspace) -> None:
    settings = ArmsConfig(
        arms=["tae", "tae_concat", "tae_history", "kd", "aux_head_adapter"],
        representation="sequence",
        fusion=Fusion.Config(width=7),
        kd=KnowledgeDistillation.Config(share=0.1),
        aux_head=AuxiliaryHead.Config(label_scale=2.0),
        adapter=StudentAdapter.Config(hidden=3),
    )
    arms = settings.models(inputs=workspace.inputs, widths={"sequence": 8, "past": 6, "penultimate": 6})
    read = [(arm.representation, arm.fusion.width) for arm in arms.values() if arm.fusion is not None]
    assert read == [("sequence", 7), ("sequence", 7), ("past", 7)]
    assert arms["kd"].distillation == KnowledgeDistillation.Config(share=0.1)
    expected = AuxiliaryHead.Config(label_scale=2.0, adapter=StudentAdapter.Config(hidden=3))
    assert arms["aux_head_adapter"].distillation == expected
    assert settings.representations() == ["past", "sequence"]
    assert ArmsConfig(arms=["control", "kd"]).representations() == ["penultimate"]
    assert ArmsConfig(arms=["tae", "finetune"]).representations() == ["penultimate", "tower_input"]


def test_the_matched_control_is_as_large_as_the_largest_arm(workspace: Workspace) -> None:
    widths = {"penultimate": 64}
    names: list[ArmName] = ["control_matched", "tae_cross_attention", "aux_head", "c2al"]
    arms = ArmsConfig(arms=names, model=ExpertModel.Config(width=8)).models(inputs=workspace.inputs, widths=widths)
    assert list(arms) == names
    sizes = {name: dense_parameters(arm, workspace.inputs, 64) for name, arm in arms.items()}
    assert sizes["aux_head"] < sizes["tae_cross_attention"] <= sizes["control_matched"]
    plain = ArmsConfig(arms=["control"], model=ExpertModel.Config(width=8))
    (control,) = plain.models(inputs=workspace.inputs, widths=widths).values()
    served = dense_parameters(control, workspace.inputs, 64)
    assert sizes["aux_head"] == sizes["c2al"] == served  # their heads do not serve


def test_an_arm_without_the_tower_that_it_starts_from_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"arm 'finetune' starts from.*tower="):
        ArmsConfig(arms=["finetune"]).models(inputs=workspace.inputs, widths={"penultimate": 6})


@pytest.mark.parametrize("arms", [[], ["tae", "tae"], ["finesse"]])
def test_arms_that_cannot_run_are_refused(arms: list[str]) -> None:
    with pytest.raises(pydantic.ValidationError, match=r"at least 1 item|an arm runs once|Input should be 'control'"):
        ArmsConfig(arms=arms)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings", [{"arms": ["control", "kd"]}, {"arms": ["aux_head_adapter"]}, {"arms": ["c2al"]}, {"calibrated": True}]
)
def test_fake_negatives_are_not_taken_for_outcomes(tiny_dataset: Dataset, settings: dict[str, Any]) -> None:
    task = tiny_dataset.config.tasks[0]
    window = {"attribution_seconds": 60, "delay_seconds": 60}
    tasks = [each.model_copy(update=window if each == task else {}) for each in tiny_dataset.config.tasks]
    plan = LabelPlan.of(tasks, {task.name: FakeNegative()})
    inputs = replace(Workspace(tiny_dataset).inputs, tasks=plan.head_names, labels=plan)
    model = ExpertModel.Config(calibration=PlattCalibration.Config() if settings.pop("calibrated", False) else None)
    arms = ArmsConfig(model=model, **settings)
    with pytest.raises(ConfigError, match="half of what is learned is no outcome"):
        arms.models(inputs=inputs, widths={"penultimate": 8, "user": 8})
    plain = ArmsConfig(arms=["control", "tae", "aux_head"])
    assert plain.models(inputs=inputs, widths={"penultimate": 8}).keys() == {"control", "tae", "aux_head"}


@pytest.mark.parametrize(
    ("setting", "instead"),
    [
        ({"shared": True}, "expert_groups"),
        ({"fusion": {"kind": "concat"}}, "fusion: {kind: concat}"),
        ({"representation": "sequence"}, "representation: sequence"),
        ({"logit_residual": True}, "arm logit_residual or treated"),
        ({"tower": {"inputs": 8, "hidden": 8, "representation": 4}}, "arm finetune"),
        ({"distillation": {"kind": "kd"}}, "give kd, aux_head or adapter"),
        ({"cohorts": {}}, "arm c2al or tae_c2al"),
    ],
)
def test_what_follows_from_the_arm_is_not_set_in_the_model(setting: dict[str, Any], instead: str) -> None:
    """Else the control would read or learn from the foundation model, and every gain be one over that."""
    (name,) = setting
    with pytest.raises(pydantic.ValidationError, match=rf"model\.{name} follows from the arm.*{re.escape(instead)}"):
        ArmsConfig.model_validate({"model": setting})


def test_whether_there_is_an_adapter_follows_from_the_arm() -> None:
    with pytest.raises(pydantic.ValidationError, match=r"aux_head\.adapter follows from the arm.*aux_head_adapter"):
        ArmsConfig.model_validate({"aux_head": {"weight": 3, "adapter": {"weight": 7}}})
