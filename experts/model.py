"""An expert: a light model of one surface, with or without what the foundation model passes on.

Shape legend: B requests, C candidates, U distinct items, D width, R width of the foundation embedding, H width of the
backbone's output, T tasks.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor, nn

from experts.attention import TargetAttention
from experts.backbone.choice import BackboneConfig
from experts.backbone.parts import CANDIDATE, CONTEXT, Parts, Past, Shapes
from experts.backbone.plain import Plain
from experts.fusion import Fusion, TeacherFeatures
from foundation.hstu.embedding import MULTIPLE, FeatureEmbedding
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
Distillation = Annotated[KnowledgeDistillation.Config | AuxiliaryHead.Config, pydantic.Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class ExpertOutput:
    """What an expert says about every candidate.

    Attributes:
        logit_CT: of the serving head.
        distilled_CT: of the head that learns from the teacher; None where there is none, and outside training.
    """

    logit_CT: Tensor
    distilled_CT: Tensor | None


class ExpertModel(nn.Module):
    """Embeddings, target attention over a short history, dense features, an MLP, one linear head a task."""

    class Config(BaseConfig):
        """Attributes:

        width: D of embeddings and attention, a multiple of 4.
        history: engagements of the expert's own surface that it attends to.
        cross_history: engagements of all surfaces that it also attends to; 0 for none.
        fusion: how the foundation embedding enters; None for not at all.
        representation: which of the teacher's vectors that embedding is.
        logit_residual: whether the foundation model's logit is added to the expert's, by a learned factor a task.
        distillation: how the teacher's predictions enter the loss; None for not at all.
        """

        width: int = pydantic.Field(default=16, ge=MULTIPLE, multiple_of=MULTIPLE)
        history: int = 16
        cross_history: int = 0
        fusion: Fusion.Config | None = None
        representation: Representation = "penultimate"
        logit_residual: bool = False
        distillation: Distillation | None = None
        backbone: BackboneConfig = Plain.Config()

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
        self.table = FeatureEmbedding.of(vocabulary, width=width)
        self.attention = TargetAttention(length=config.history, **attention)
        fields = {CANDIDATE: width, CONTEXT: width, "dense": len(inputs.dense), "surface": width}
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
        self.heads = nn.Linear(self.backbone.width, tasks)
        normal_start(self.heads.weight, 0.01)
        self.distil_head = None
        if isinstance(config.distillation, AuxiliaryHead.Config):
            self.distil_head = AuxiliaryHead(config=config.distillation, width=self.backbone.width, tasks=tasks)
        self.teacher_factor = nn.Parameter(torch.ones(tasks)) if config.logit_residual else None
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
            "dense": batch.dense_CF,
            "surface": self.attention(candidate_CD, item_UD, batch.history["surface"], *place),
        }
        if self.cross_attention is not None:
            fields["all"] = self.cross_attention(candidate_CD, item_UD, batch.history["all"], *place)
        if self.fusion is not None:
            own_CE = torch.cat(list(fields.values()), dim=1)
            fields["teacher"] = self.fusion(teacher.vectors[self.config.representation], own_CE)
        past = Past.of(batch, item_UD, history="surface")
        hidden_CH = self.backbone(Parts(fields=fields, past=past))
        logit_CT = self.heads(hidden_CH)
        if self.teacher_factor is not None:
            logit_CT = logit_CT + self.teacher_factor * teacher.logit_CT
        if self.distil_head is None or not self.training:
            return ExpertOutput(logit_CT=logit_CT, distilled_CT=None)
        return ExpertOutput(logit_CT=logit_CT, distilled_CT=self.distil_head(hidden_CH))
