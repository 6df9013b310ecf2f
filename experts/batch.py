"""What the arms of one surface train on together: a batch of requests, and what the teacher says of it."""

from dataclasses import dataclass
from functools import cached_property

from experts.cohort import CohortLabels
from experts.fusion import TeacherFeatures
from experts.model import ExpertModel
from foundation.hstu.vocabulary import BatchSlots
from streaming.batch import RequestBatch
from transfer.distill import Lesson


@dataclass(frozen=True, kw_only=True)
class ExpertBatch:
    """Requests of one surface with what the foundation model logged about them.

    ``cohorts``: labels of auxiliary tasks; None where no arm has any, and outside training.
    """

    requests: RequestBatch
    slots: BatchSlots
    teacher: TeacherFeatures
    lesson: Lesson
    cohorts: CohortLabels | None = None

    @cached_property
    def _views(self) -> dict[tuple[str, ...], tuple[RequestBatch, BatchSlots]]:
        return {tuple(self.requests.history): (self.requests, self.slots)}

    def read_by(self, model: ExpertModel) -> tuple[RequestBatch, BatchSlots, TeacherFeatures]:
        """What the model is called with: without histories, and embeddings of items, that it does not read.

        An optimiser inside a look-up's backward pass works on every row that was looked up, wanted or not.
        """
        if model.histories not in self._views:
            requests, item_U = self.requests.reading(model.histories)
            self._views[model.histories] = requests, self.slots.of_items(item_U)
        return *self._views[model.histories], self.teacher
