"""One arm with one seed: a model, what optimises it, and how it learns from labels and teacher."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from experts.cohort import CohortLabels
from experts.fusion import TeacherFeatures
from experts.model import ExpertModel, ExpertOutput
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

    def start(self) -> None:
        """Begin a window, or begin it again."""
        if self.model.calibration is not None:
            self.model.calibration.clear()

    def give(self, weights: Mapping[str, Tensor]) -> None:
        """Let the model go on from the tower in a foundation model's ``state_dict()``; its optimiser begins anew."""
        if self.model.tower is None:
            return
        self.model.tower.give(weights)
        taken = list(self.model.tower.parameters())
        for parameter in taken:
            self.optimiser.dense.state.pop(parameter, None)
        for weight, average in zip(self.optimiser.weights, self.optimiser.average, strict=True):
            if any(weight is parameter for parameter in taken):
                average.copy_(weight.detach())

    def predict(self, batch: RequestBatch, slots: BatchSlots, teacher: TeacherFeatures) -> Tensor:
        """Probabilities, float ``[C, T]``. Calibration notes what was said about labels known in ``batch`` (law L2).

        It changes no prediction before :meth:`finish` (law L4).
        """
        logit_CT = self.model.eval()(batch, slots, teacher).logit_CT
        if self.model.calibration is not None:
            self.model.calibration.observe(logit_CT, batch.labels.label_CT, batch.labels.known_CT)
        return self.model.probability(logit_CT)

    def step(
        self,
        batch: RequestBatch,
        slots: BatchSlots,
        teacher: TeacherFeatures,
        lesson: Lesson,
        cohorts: CohortLabels | None = None,
    ) -> Tensor:
        """One update; returns the loss, without the adapter's. ``cohorts``: for the model's cohort heads, if any."""
        adapted_CT = self.adapter.step(lesson) if self.adapter is not None else None
        said = self.model.train()(batch, slots, teacher)
        loss = self.loss(said, lesson, adapted_CT)
        how = self.model.config.cohorts
        if how is not None and said.cohort_CK is not None and cohorts is not None:
            loss = loss + how.weight * cohorts.loss(said.cohort_CK)
        self.optimiser.step(loss)
        return loss.detach()

    def finish(self) -> None:
        """End a window: what was predicted and has become known calibrates the next one."""
        if self.model.calibration is not None:
            self.model.calibration.close()

    def loss(self, said: ExpertOutput, lesson: Lesson, adapted_CT: Tensor | None = None) -> Tensor:
        """Scalar: of the true labels, and of the teacher's as the model's configuration says."""
        how = self.model.config.distillation
        if isinstance(how, KnowledgeDistillation.Config):
            return KnowledgeDistillation(config=how).loss(said.logit_CT, lesson)
        loss = self.model.delayed.loss(said.logit_CT, lesson.label_CT, lesson.known_CT)
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
