"""A question on its way to its answer, and why it may not get there.

Shape legend: C candidates, T tasks.
"""

from dataclasses import dataclass, field

from hypercast.serving.features.asked import Asked
from hypercast.serving.features.question import Question
from hypercast.serving.lanes.ladder import Floats, Given
from hypercast.serving.models.bundle import Bundle
from hypercast.serving.models.expert import ExpertScorer
from hypercast.serving.models.foundation import FoundationScorer

REQUEST_UNITS = 100.0
"""What a request costs beside its candidates, in candidates: its history."""
KEPT_UNITS = 20.0
"""The same of the foundation model, where it has probably kept the user's encoded history."""
READS_LOGITS = "penultimate"
"""The representation from which the foundation model's main heads read their logits."""


def finds_what_it_reads(expert: ExpertScorer, *, kept: str) -> bool:
    """Whether an online store of the representation ``kept`` has what ``expert`` reads of the foundation model."""
    return expert.representation in (None, kept) and (not expert.reads_logits or kept == READS_LOGITS)


class Busy(Exception):
    """More requests wait for experts than may."""


class NoExpert(Exception):
    """The surface has no expert yet."""


class TooEarly(Exception):
    """The request is of a time that the models in use have learned from (law L3); says up to when they have."""


@dataclass(kw_only=True, eq=False)
class Ranking:
    """A question on its way. ``asked`` is made by the first lane that needs it; ``begun``: by the foundation model."""

    question: Question
    bundle: Bundle
    asked: Asked | None = None
    given: Given | None = None
    begun: bool = False
    behind: bool = False
    milliseconds: dict[str, float] = field(default_factory=dict)

    @property
    def units(self) -> float:
        return REQUEST_UNITS + len(self.question.item_ids)

    @property
    def foundation_units(self) -> float:
        """:attr:`units` for the foundation model as it is now."""
        foundation, question = self.foundation, self.question
        kept = foundation is not None and foundation.keeps(question.user_id)
        return (KEPT_UNITS if kept else REQUEST_UNITS) + len(question.item_ids)

    @property
    def expert(self) -> ExpertScorer:
        """The surface's; if there is nothing to read of the foundation model, the one that never reads any."""
        surface = self.question.surface
        if self.given is None:
            return self.bundle.fallback.get(surface) or self.bundle.experts[surface]
        return self.bundle.experts[surface]

    def finds_in(self, kept: str) -> bool:
        """:func:`finds_what_it_reads` of the surface's expert."""
        return finds_what_it_reads(self.bundle.experts[self.question.surface], kept=kept)

    def told(self) -> Given | None:
        """What an expert has to read; None where there is not one vector."""
        return self.given if self.given is not None and self.given.present_C.any() else None

    @property
    def foundation(self) -> FoundationScorer | None:
        """Whose vectors the surface's expert reads."""
        return self.bundle.foundation_of(self.question.surface)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Attributes:

    probability_CT: float32, in the order of the question's items.
    tasks: names of its columns.
    given: what the candidates were given of the foundation model.
    bundle, expert: that answered.
    foundation: ``live``; or why not: ``refused`` (no time), ``late``, ``failed``, ``absent`` (no snapshot), ``off``.
    milliseconds: by stage, waiting included.
    """

    probability_CT: Floats
    tasks: list[str]
    given: Given
    bundle: Bundle
    expert: ExpertScorer
    foundation: str
    milliseconds: dict[str, float]
