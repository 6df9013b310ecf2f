"""An expert: a light model of one surface or a few, with or without what the foundation model passes on.

Shape legend: B requests, C candidates, U distinct items, D width, R width of the foundation embedding, H width of the
backbone's output, T tasks, K cohorts.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experts.attention import TargetAttention
from experts.backbone.choice import BackboneConfig
from experts.backbone.parts import CANDIDATE, CONTEXT, Parts, Past, Shapes
from experts.backbone.plain import Plain
from experts.calibration import PlattCalibration
from experts.cohort import CohortTasks
from experts.fusion import Fusion, TeacherFeatures
from experts.heads import TaskHeads
from foundation.hstu.delayed import DelayedHeads
from foundation.hstu.embedding import MULTIPLE, FeatureEmbedding
from foundation.hstu.numbers import NumberEncoding
from foundation.hstu.tower import Tower, TowerShape
from foundation.hstu.vocabulary import BatchSlots, BatchVocabulary
from hypercast.training.random import initialise_, normal_start
from streaming.batch import RequestBatch
from streaming.config import Config as BaseConfig
from streaming.inputs import Inputs
from transfer.distill import AuxiliaryHead, KnowledgeDistillation

Representation = Literal["penultimate", "sequence", "user", "past"]
"""What an expert can read as the foundation embedding: three are in the log (:mod:`foundation.publish`), ``past`` is
made of it (:mod:`experts.past`).
"""
TOWER_INPUT = "tower_input"
"""What an expert that goes on training the foundation model's tower reads of the log."""
Distillation = Annotated[KnowledgeDistillation.Config | AuxiliaryHead.Config, pydantic.Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class ExpertOutput:
    """What an expert says about every candidate.

    Attributes:
        logit_CT: of the serving heads, as they are trained; :meth:`ExpertModel.probability` is what is served.
        distilled_CT: of the head that learns from the teacher; None where there is none, and outside training.
        cohort_CK: of the heads that tell cohorts apart; likewise.
    """

    logit_CT: Tensor
    distilled_CT: Tensor | None
    cohort_CK: Tensor | None


class ExpertModel(nn.Module):
    """Embeddings, target attention over a short history, dense features, a backbone, heads a task."""

    class Config(BaseConfig):
        """Attributes:

        width: D of embeddings and attention, a multiple of 4.
        shared: whether it is of several surfaces: it then reads which of them a candidate is of.
        history: engagements that it attends to, of its own surface, or of all where it is shared; 0 for none.
        cross_history: engagements of all surfaces that it also attends to; 0 for none.
        fusion: how the foundation embedding enters; None for not at all.
        representation: which of the teacher's vectors that embedding is.
        logit_residual: whether the foundation model's logit is added to the expert's, by a learned factor a task.
        tower: shape of the foundation model's tower that the expert goes on training; None for none of it.
        distillation: how the teacher's predictions enter the loss; None for not at all.
        cohorts: auxiliary tasks of contrasting cohorts, in training only; None for none.
        backbone: what reads all of these.
        heads: what reads the backbone.
        calibration: what is done to the probabilities that are served; None for nothing.
        """

        width: int = pydantic.Field(default=16, ge=MULTIPLE, multiple_of=MULTIPLE)
        shared: bool = False
        history: int = pydantic.Field(default=16, ge=0)
        cross_history: int = pydantic.Field(default=0, ge=0)
        fusion: Fusion.Config | None = None
        representation: Representation = "penultimate"
        logit_residual: bool = False
        tower: TowerShape | None = None
        distillation: Distillation | None = None
        cohorts: CohortTasks.Config | None = None
        backbone: BackboneConfig = Plain.Config()
        heads: TaskHeads.Config = TaskHeads.Config()
        calibration: PlattCalibration.Config | None = None

        @pydantic.model_validator(mode="after")
        def _what_is_attended_to_is_there(self) -> "ExpertModel.Config":
            if self.backbone.kind == "gesr" and not self.history:
                raise ValueError("history: 0: backbone gesr attends to the events before a request. Give history: 16")
            return self

        def serving(self) -> "ExpertModel.Config":
            """The same expert without what it has for training only."""
            return self.model_copy(update={"distillation": None, "cohorts": None})

        def build(self, *, inputs: Inputs, vocabulary: BatchVocabulary, embedding: int, seed: int) -> "ExpertModel":
            return ExpertModel(config=self, inputs=inputs, vocabulary=vocabulary, embedding=embedding, seed=seed)

    def __init__(
        self, *, config: Config, inputs: Inputs, vocabulary: BatchVocabulary, embedding: int, seed: int
    ) -> None:
        super().__init__()
        width, tasks = config.width, len(inputs.tasks)
        attention = {"width": width, "actions": len(inputs.actions), "surfaces": len(inputs.surfaces)}
        self.config = config
        self.tasks = tasks
        self.delayed = DelayedHeads(inputs.plan)
        self.table = FeatureEmbedding.of(vocabulary, width=width)
        self.surfaces = len(inputs.surfaces) if config.shared else 0
        self.numbers = NumberEncoding(len(inputs.dense))
        fields = {CANDIDATE: width, CONTEXT: width, "dense": self.numbers.width}
        self.attention = None
        if config.history:
            self.attention = TargetAttention(length=config.history, **attention)
            fields["surface"] = width
        self.surface_bias = None
        if config.shared:
            fields["which_surface"] = self.surfaces
            self.surface_bias = nn.Embedding(self.surfaces, tasks)
            normal_start(self.surface_bias.weight, 0.0)
        self.cross_attention = None
        if config.cross_history:
            self.cross_attention = TargetAttention(length=config.cross_history, **attention)
            fields["all"] = width
        self.fusion = None
        if config.fusion is not None:
            self.fusion = config.fusion.build(
                embedding=embedding, own=sum(fields.values()), seed=seed, name="expert/fusion"
            )
            fields["teacher"] = config.fusion.width
        self.backbone = config.backbone.build(Shapes(fields=fields, history=config.history, inputs=inputs))
        self.heads = config.heads.build(width=self.backbone.width, tasks=tasks)
        self.distil_head = None
        if isinstance(config.distillation, AuxiliaryHead.Config):
            self.distil_head = AuxiliaryHead(config=config.distillation, width=self.backbone.width, tasks=tasks)
        self.cohort_heads = None
        if config.cohorts is not None:
            self.cohort_heads = TaskHeads.Config().build(width=self.backbone.width, tasks=config.cohorts.outputs)
        self.calibration = config.calibration.build(tasks=tasks) if config.calibration is not None else None
        self.teacher_factor = nn.Parameter(torch.ones(tasks)) if config.logit_residual else None
        self.tower = Tower(shape=config.tower, tasks=tasks) if config.tower is not None else None
        initialise_(self, seed)

    def forward(self, batch: RequestBatch, slots: BatchSlots, teacher: TeacherFeatures) -> ExpertOutput:
        """Logits of every candidate; reads nothing of the batch's labels (law L6).

        ``slots`` are the batch's, by the vocabulary that the model was built for.
        """
        item_UD, user_BD, request_BD = self.table(slots).split(slots.counts)
        context_BD = user_BD + request_BD
        candidate_CD = item_UD[batch.item_C]
        place = (batch.owner_C, batch.time_B)
        fields = {
            CANDIDATE: candidate_CD,
            CONTEXT: context_BD[batch.owner_C],
            "dense": self.numbers(batch.dense_CF),
        }
        if self.attention is not None:
            fields["surface"] = self.attention(candidate_CD, item_UD, batch.history["surface"], *place)
        if self.surface_bias is not None:
            fields["which_surface"] = F.one_hot(batch.surface_C, self.surfaces).float()
        if self.cross_attention is not None:
            fields["all"] = self.cross_attention(candidate_CD, item_UD, batch.history["all"], *place)
        if self.fusion is not None:
            own_CE = torch.cat(list(fields.values()), dim=1)
            fields["teacher"] = self.fusion(teacher.vectors[self.config.representation], own_CE)
        past = Past.of(batch, item_UD, history="surface")
        hidden_CH = self.backbone(Parts(fields=fields, past=past))
        logit_CT = self.heads(hidden_CH)
        if self.surface_bias is not None:
            logit_CT = logit_CT + self.surface_bias(batch.surface_C)
        if self.teacher_factor is not None:
            logit_CT = logit_CT + self.teacher_factor * teacher.logit_CT
        if self.tower is not None:
            given = teacher.vectors[TOWER_INPUT]
            logit_CT = logit_CT + self.tower(given.vector_CR) * given.present_C[:, None]
        distilled_CT, cohort_CK = (
            head(hidden_CH) if head is not None and self.training else None
            for head in (self.distil_head, self.cohort_heads)
        )
        return ExpertOutput(logit_CT=logit_CT, distilled_CT=distilled_CT, cohort_CK=cohort_CK)

    @property
    def histories(self) -> tuple[str, ...]:
        """Those of a batch's histories that it reads; its short one is there, and empty, where it has none."""
        return ("surface",) if self.cross_attention is None else ("surface", "all")

    def probability(self, logit_CT: Tensor) -> Tensor:
        """What the expert serves where it says ``logit_CT``: calibrated, if it has a calibration."""
        return (logit_CT if self.calibration is None else self.calibration(logit_CT)).sigmoid()

    def serving_state(self) -> dict[str, Tensor]:
        """``state_dict()`` of the same expert without what it has for training only; of ``config.serving()``."""
        training = ("distil_head.", "cohort_heads.")
        return {name: value for name, value in self.state_dict().items() if not name.startswith(training)}
