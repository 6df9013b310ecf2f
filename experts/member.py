"""One arm with one seed: a model, what optimises it, and how it learns from labels and teacher."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from experts.fusion import TeacherFeatures
from experts.model import ExpertModel, ExpertOutput
from foundation.hstu.loss import masked_log_loss
from foundation.hstu.optimiser import ModelOptimiser
from foundation.hstu.vocabulary import BatchSlots
from hypercast.training.random import get_states, initialise_, set_states
from streaming.batch import RequestBatch
from transfer.distill import AdapterLearner, AuxiliaryHead, KnowledgeDistillation, Lesson, StudentAdapter


class Member:
    """Learns batch by batch. A student adapter, where there is one, steps before the model does."""

    def __init__(self, *, model: ExpertModel, optimiser: ModelOptimiser.Config, seed: int) -> None:
        self.model = model
        self.optimiser = optimiser.build(model)
        self.adapter = None
        how = model.config.distillation
        if isinstance(how, AuxiliaryHead.Config) and how.adapter is not None:
            adapter = StudentAdapter(config=how.adapter, tasks=model.tasks)
            initialise_(adapter, seed)
            self.adapter = AdapterLearner(adapter)

    def step(self, batch: RequestBatch, slots: BatchSlots, teacher: TeacherFeatures, lesson: Lesson) -> Tensor:
        """One update; returns the loss, without the adapter's."""
        adapted_CT = self.adapter.step(lesson) if self.adapter is not None else None
        loss = self.loss(self.model.train()(batch, slots, teacher), lesson, adapted_CT)
        self.optimiser.step(loss)
        return loss.detach()

    def loss(self, said: ExpertOutput, lesson: Lesson, adapted_CT: Tensor | None = None) -> Tensor:
        """Scalar: of the true labels, and of the teacher's as the model's configuration says."""
        how = self.model.config.distillation
        if isinstance(how, KnowledgeDistillation.Config):
            return KnowledgeDistillation(config=how).loss(said.logit_CT, lesson)
        loss = masked_log_loss(said.logit_CT, lesson.label_CT, lesson.known_CT)
        if self.model.distil_head is not None and said.distilled_CT is not None:
            loss = loss + self.model.distil_head.loss(said.distilled_CT, lesson, adapted_CT)
        return loss

    def state_dict(self) -> dict[str, Any]:
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "dropout": get_states(self.model),
        }
        return state | ({"adapter": self.adapter.state_dict()} if self.adapter is not None else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        set_states(self.model, state["dropout"])
        if self.adapter is not None:
            self.adapter.load_state_dict(state["adapter"])
