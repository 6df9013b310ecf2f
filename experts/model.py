"""An expert: a light model of one surface, with or without what the foundation model passes on.

Shape legend: B requests, C candidates, U distinct items, D width, R width of the foundation embedding, T tasks.
"""

import pydantic
import torch
from torch import Tensor, nn

from experts.attention import TargetAttention
from experts.backbone.mlp import MLP
from experts.fusion import GatedFusion, TeacherFeatures
from foundation.hstu.embedding import MULTIPLE, FeatureEmbedding
from foundation.hstu.vocabulary import BatchSlots, BatchVocabulary
from hypercast.training.random import initialise_, normal_start
from streaming.batch import RequestBatch
from streaming.config import Config as BaseConfig
from streaming.inputs import Inputs


class ExpertModel(nn.Module):
    """Embeddings, target attention over a short history, dense features, an MLP, one linear head a task."""

    class Config(BaseConfig):
        """Attributes:

        width: D of embeddings and attention, a multiple of 4.
        history: engagements of the expert's own surface that it attends to.
        cross_history: engagements of all surfaces that it also attends to; 0 for none.
        fusion: how the foundation embedding enters; None for not at all.
        logit_residual: whether the foundation model's logit is added to the expert's, by a learned factor a task.
        """

        width: int = pydantic.Field(default=16, ge=MULTIPLE, multiple_of=MULTIPLE)
        history: int = 16
        cross_history: int = 0
        fusion: GatedFusion.Config | None = None
        logit_residual: bool = False
        backbone: MLP.Config = MLP.Config()

        def build(self, *, inputs: Inputs, vocabulary: BatchVocabulary, embedding: int, seed: int) -> "ExpertModel":
            return ExpertModel(config=self, inputs=inputs, vocabulary=vocabulary, embedding=embedding, seed=seed)

    def __init__(
        self, *, config: Config, inputs: Inputs, vocabulary: BatchVocabulary, embedding: int, seed: int
    ) -> None:
        super().__init__()
        width, tasks = config.width, len(inputs.tasks)
        attention = {"width": width, "actions": len(inputs.actions), "surfaces": len(inputs.surfaces)}
        self.config = config
        self.table = FeatureEmbedding.of(vocabulary, width=width)
        self.attention = TargetAttention(length=config.history, **attention)
        own = 3 * width + len(inputs.dense)
        self.cross_attention = None
        if config.cross_history:
            self.cross_attention = TargetAttention(length=config.cross_history, **attention)
            own += width
        self.fusion = None
        fused = 0
        if config.fusion is not None:
            self.fusion = config.fusion.build(embedding=embedding, own=own, seed=seed, name="expert/fusion")
            fused = config.fusion.width
        self.backbone = config.backbone.build(width=own + fused)
        self.heads = nn.Linear(self.backbone.width, tasks)
        normal_start(self.heads.weight, 0.01)
        self.teacher_factor = nn.Parameter(torch.ones(tasks)) if config.logit_residual else None
        initialise_(self, seed)

    def forward(self, batch: RequestBatch, slots: BatchSlots, teacher: TeacherFeatures) -> Tensor:
        """Logits of every candidate, float ``[C, T]``; reads nothing of the batch's labels (law L6).

        ``slots`` are the batch's, by the vocabulary that the model was built for.
        """
        item_UD, user_BD, request_BD = self.table(slots).split(slots.counts)
        context_BD = user_BD + request_BD
        candidate_CD = item_UD[batch.item_C]
        place = (batch.owner_C, batch.time_B)
        parts = [
            candidate_CD,
            context_BD[batch.owner_C],
            batch.dense_CF,
            self.attention(candidate_CD, item_UD, batch.history["surface"], *place),
        ]
        if self.cross_attention is not None:
            parts.append(self.cross_attention(candidate_CD, item_UD, batch.history["all"], *place))
        own_CE = torch.cat(parts, dim=1)
        if self.fusion is not None:
            own_CE = torch.cat([own_CE, self.fusion(teacher, own_CE)], dim=1)
        logit_CT = self.heads(self.backbone(own_CE))
        if self.teacher_factor is not None:
            logit_CT = logit_CT + self.teacher_factor * teacher.logit_CT
        return logit_CT
