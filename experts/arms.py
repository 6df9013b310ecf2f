"""The arms of the comparison: what one expert becomes with and without the foundation model, one name a mode."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import pydantic

from experts.cohort import CohortTasks
from experts.fusion import Fusion
from experts.model import TOWER_INPUT, ExpertModel, Representation
from foundation.hstu.embedding import FeatureEmbedding
from foundation.hstu.tower import TowerShape
from foundation.hstu.vocabulary import BatchVocabulary
from streaming.config import Config as BaseConfig
from streaming.errors import ConfigError
from streaming.inputs import Inputs
from streaming.labels.plan import LabelPlan
from streaming.labels.policy import FakeNegative
from transfer.distill import AuxiliaryHead, KnowledgeDistillation, StudentAdapter
from transfer.gain import (
    AUX_HEAD,
    AUX_HEAD_ADAPTER,
    C2AL,
    COLD,
    CONTROL,
    CONTROL_MATCHED,
    FINETUNE,
    KD,
    LOGIT_RESIDUAL,
    TAE,
    TAE_AUX_HEAD_ADAPTER,
    TAE_C2AL,
    TAE_CONCAT,
    TAE_CROSS_ATTENTION,
    TAE_HISTORY,
    TAE_KD,
    TAE_SEQUENCE,
    TREATED,
    USER_EMBEDDING,
)

ArmName = Literal[
    "control",
    "control_matched",
    "kd",
    "aux_head",
    "aux_head_adapter",
    "user_embedding",
    "tae",
    "tae_sequence",
    "tae_concat",
    "tae_cross_attention",
    "logit_residual",
    "treated",
    "tae_aux_head_adapter",
    "tae_kd",
    "tae_history",
    "c2al",
    "tae_c2al",
    "finetune",
]
ARMS: tuple[ArmName, ...] = ("control", "control_matched", "tae", "logit_residual", "treated")
"""Those that run unless others are asked for."""


@dataclass(frozen=True, kw_only=True)
class Mode:
    """What an arm takes from the foundation model, and what of the shared settings it has otherwise.

    Attributes:
        embedding: whether it reads one.
        representation, fusion: which, and how; None for what the settings say.
        logit_residual: whether it starts from the teacher's logit.
        tower: whether it goes on training the teacher's tower from some window on: a reference, as what it serves then
            reads ten times as much of the log as the others.
        distils: how it learns from the teacher's predictions.
        cohorts: whether it also learns to tell contrasting cohorts apart, which owes nothing to the teacher.
    """

    embedding: bool = False
    representation: Representation | None = None
    fusion: Literal["concat", "cross_attention"] | None = None
    logit_residual: bool = False
    tower: bool = False
    distils: Literal["kd", "aux_head", "aux_head_adapter"] | None = None
    cohorts: bool = False


MODES: Mapping[str, Mode] = {
    CONTROL: Mode(),
    KD: Mode(distils="kd"),
    AUX_HEAD: Mode(distils="aux_head"),
    AUX_HEAD_ADAPTER: Mode(distils="aux_head_adapter"),
    USER_EMBEDDING: Mode(embedding=True, representation="user"),
    TAE: Mode(embedding=True),
    TAE_SEQUENCE: Mode(embedding=True, representation="sequence"),
    TAE_CONCAT: Mode(embedding=True, fusion="concat"),
    TAE_CROSS_ATTENTION: Mode(embedding=True, fusion="cross_attention"),
    LOGIT_RESIDUAL: Mode(logit_residual=True),
    TREATED: Mode(embedding=True, logit_residual=True),
    TAE_AUX_HEAD_ADAPTER: Mode(embedding=True, distils="aux_head_adapter"),
    TAE_KD: Mode(embedding=True, distils="kd"),
    TAE_HISTORY: Mode(embedding=True, representation="past"),
    C2AL: Mode(cohorts=True),
    TAE_C2AL: Mode(embedding=True, cohorts=True),
    FINETUNE: Mode(tower=True),
}
"""All arms but ``control_matched``, whose size follows from the others."""


FROM_ARM: Mapping[str, str] = {
    "shared": "name the surfaces in the platform file, expert_groups: {mailers: [mailer_front, mailer_back_wrap]}",
    "fusion": "give it beside model, as fusion: {kind: concat}",
    "representation": "give it beside model, as representation: sequence",
    "logit_residual": "choose the arm logit_residual or treated",
    "tower": "choose the arm finetune",
    "distillation": "give kd, aux_head or adapter beside model, and choose the arm of that name",
    "cohorts": "give them beside model, and choose the arm c2al or tae_c2al",
}
"""Settings of :class:`ExpertModel.Config` that follow from what an expert is, and what to give instead: the control is
the model without any of them.
"""


class ArmsConfig(BaseConfig):
    """Which arms run beside each other, and what they share.

    Attributes:
        arms: names; those of :data:`ARMS` by default.
        model: the control; the other arms follow from it.
        fusion: how the arms that read an embedding take it in.
        representation: which embedding ``tae`` and what is built on it read: the shared tower's (``penultimate``) or
            what enters it (``sequence``).
        kd: of the arms that distil by one head.
        aux_head: of the arms that have such a head.
        adapter: of those that have an adapter too.
        cohorts: of the arms that learn to tell cohorts apart.
        finetune_window: before which ``finetune`` takes over the newest snapshot's tower, to train it from then on.
            Until then it is the control.
        cross_history: engagements of all surfaces that ``control_matched`` attends to.
    """

    arms: list[ArmName] = pydantic.Field(default=list(ARMS), min_length=1)
    model: ExpertModel.Config = ExpertModel.Config()
    fusion: Fusion.Config = Fusion.Config()
    representation: Literal["penultimate", "sequence"] = "penultimate"
    kd: KnowledgeDistillation.Config = KnowledgeDistillation.Config()
    aux_head: AuxiliaryHead.Config = AuxiliaryHead.Config()
    adapter: StudentAdapter.Config = StudentAdapter.Config()
    cohorts: CohortTasks.Config = CohortTasks.Config()
    finetune_window: int = pydantic.Field(default=COLD.first, ge=1)
    cross_history: int = 128

    @pydantic.field_validator("arms")
    @classmethod
    def _once_each(cls, arms: list[ArmName]) -> list[ArmName]:
        if len(set(arms)) < len(arms):
            raise ValueError("an arm runs once: drop the repeated name. Example: [control, tae]")
        return arms

    @pydantic.field_validator("model")
    @classmethod
    def _is_the_control(cls, model: ExpertModel.Config) -> ExpertModel.Config:
        plain = ExpertModel.Config()
        for name, instead in FROM_ARM.items():
            if getattr(model, name) != getattr(plain, name):
                raise ValueError(f"model.{name} follows from the arm or its surfaces. Leave it out; {instead}")
        return model

    @pydantic.field_validator("aux_head")
    @classmethod
    def _adapter_is_an_arms(cls, aux_head: AuxiliaryHead.Config) -> AuxiliaryHead.Config:
        if aux_head.adapter is not None:
            raise ValueError(
                "aux_head.adapter follows from the arm. Leave it out; give adapter: {weight: 3} beside aux_head, and "
                "choose the arm aux_head_adapter or tae_aux_head_adapter"
            )
        return aux_head

    def models(
        self, *, inputs: Inputs, widths: Mapping[str, int], tower: TowerShape | None = None
    ) -> dict[str, ExpertModel.Config]:
        """Configurations of every arm that runs, by name, in the order of ``arms``.

        ``control_matched`` adds the cross-surface history instead of anything from the teacher, and gets at least as
        many dense parameters as ``treated`` and every other arm by a wider backbone, so that no gain is one of size.

        Args:
            inputs: of the data set.
            widths: of the teacher's vectors, by representation.
            tower: shape of the teacher's, which ``finetune`` needs.

        Raises:
            ConfigError: an arm needs a tower, and there is none; or takes labels for outcomes that are none.
        """
        chosen = {name: self._model(MODES[name], tower) for name in self.arms if name != CONTROL_MATCHED}
        if CONTROL_MATCHED in self.arms:
            sizes = [
                dense_parameters(config, inputs, widths[config.representation])
                for config in (self._model(MODES[TREATED]), *chosen.values())
            ]
            matched = self.model.model_copy(update={"cross_history": self.cross_history})
            chosen[CONTROL_MATCHED] = widened(matched, to=max(sizes), inputs=inputs, embedding=widths["penultimate"])
        _refuse_misled(chosen, inputs.plan)
        return {name: chosen[name] for name in self.arms}

    def of_several(self, shared: bool) -> Self:
        """The same arms of an expert that several surfaces share, or not."""
        return self.model_copy(update={"model": self.model.model_copy(update={"shared": shared})})

    def representations(self) -> list[str]:
        """What the arms read, sorted; ``penultimate`` also where they read none."""
        modes = [MODES[name] for name in self.arms if name != CONTROL_MATCHED]
        read: set[str] = {mode.representation or self.representation for mode in modes if mode.embedding}
        read |= {TOWER_INPUT for mode in modes if mode.tower}
        return sorted(read) or ["penultimate"]

    def distils(self) -> bool:
        """Whether some arm learns from the teacher's predictions."""
        return any(MODES[name].distils for name in self.arms if name != CONTROL_MATCHED)

    def _model(self, mode: Mode, tower: TowerShape | None = None) -> ExpertModel.Config:
        has: dict[str, Any] = {"logit_residual": mode.logit_residual}
        if mode.tower:
            if tower is None:
                raise ConfigError(
                    f"arm {FINETUNE!r} starts from the foundation model's tower, which is not known. Give its shape "
                    "and its snapshots: SurfaceLearner(tower=foundation.model.tower_shape(inputs), registry=registry)."
                )
            has["tower"] = tower
        if mode.embedding:
            kind = {"kind": mode.fusion} if mode.fusion else {}
            has["fusion"] = self.fusion.model_copy(update=kind)
            has["representation"] = mode.representation or self.representation
        if mode.distils == "kd":
            has["distillation"] = self.kd
        elif mode.distils is not None:
            adapter = self.adapter if mode.distils == "aux_head_adapter" else None
            has["distillation"] = self.aux_head.model_copy(update={"adapter": adapter})
        if mode.cohorts:
            has["cohorts"] = self.cohorts
        return self.model.model_copy(update=has)


def _refuse_misled(arms: Mapping[ArmName, ExpertModel.Config], plan: LabelPlan) -> None:
    """Of fake negatives half of what is learned is no outcome, which only the main heads' loss knows."""
    if not any(isinstance(policy, FakeNegative) for policy in plan.policies):
        return
    misled = [
        name
        for name, arm in arms.items()
        if isinstance(arm.distillation, KnowledgeDistillation.Config)
        or (isinstance(arm.distillation, AuxiliaryHead.Config) and arm.distillation.adapter is not None)
        or arm.cohorts is not None
        or arm.calibration is not None
    ]
    if misled:
        raise ConfigError(
            "labels: of fake_negative, half of what is learned is no outcome, and calibration, kd, adapters and "
            f"cohorts cannot tell. Give expert.model.calibration: null, leave out {misled}, or use interpolation."
        )


def widened(config: ExpertModel.Config, *, to: int, inputs: Inputs, embedding: int) -> ExpertModel.Config:
    """``config`` with the narrowest first hidden layer that gives it at least ``to`` dense parameters."""
    first, *rest = config.backbone.hidden
    per_unit = dense_parameters(_hidden(config, first + 1, rest), inputs, embedding)
    per_unit -= dense_parameters(config, inputs, embedding)
    missing = to - dense_parameters(config, inputs, embedding)
    return _hidden(config, first + max(0, math.ceil(missing / per_unit)), rest)


def dense_parameters(config: ExpertModel.Config, inputs: Inputs, embedding: int) -> int:
    """Number of parameters that serve, outside the embedding tables, which are the same in every arm."""
    vocabulary = BatchVocabulary.Config(default=2).build(inputs)
    model = config.serving().build(inputs=inputs, vocabulary=vocabulary, embedding=embedding, seed=0)
    tables = {id(each.weight) for each in model.modules() if isinstance(each, FeatureEmbedding)}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in tables)


def _hidden(config: ExpertModel.Config, first: int, rest: list[int]) -> ExpertModel.Config:
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"hidden": [first, *rest]})})
