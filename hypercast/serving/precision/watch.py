"""A continuous watch over a compact model's accuracy: a share of what is served is scored in float32 too.

As low-precision inference is run at Facebook (arXiv 2105.12676): a bound that held on a sample says nothing of
tomorrow's traffic unless somebody looks.

Shape legend: C candidates, T tasks.
"""

import logging
import math
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pydantic
from torch import Tensor

from hypercast.serving.precision.cost import divergence
from streaming.config import Config as BaseConfig

AnswerT = TypeVar("AnswerT")
Event = Literal["compact", "float32", "watched", "strayed"]
"""A call was answered by the compact model; or by the other; was scored by both; and that showed that it strays."""
Listener = Callable[[Event, float], None]
"""Hears of every event, and the average cost in % of NE by then."""
_logger = logging.getLogger(__name__)


def logits_of(answer: Any) -> Tensor:
    """Logits ``[C, T]`` of what a foundation model or an expert answers."""
    return answer.logit_CT


class AccuracyWatch(Generic[AnswerT]):
    """Answers by a compact model, and by the one it stands for once it is found to stray.

    What a watched request gets is the compact answer, as if nobody had looked. The bound is on the expected relative
    change of NE (:mod:`hypercast.serving.precision.cost`), averaged over watched candidates with a half-life.
    """

    class Config(BaseConfig):
        """Attributes:

        share: of requests that are scored twice.
        ne_cost_pct: bound on the average.
        half_life: candidates after which one counts half.
        least: candidates that are watched before anything is decided.
        seed: of the draw of requests.
        """

        share: float = pydantic.Field(default=0.01, ge=0.0, le=1.0)
        ne_cost_pct: float = pydantic.Field(default=0.05, gt=0.0)
        half_life: float = pydantic.Field(default=20_000.0, gt=0.0)
        least: int = pydantic.Field(default=500, ge=1)
        seed: int = 0

    def __init__(
        self,
        *,
        config: Config,
        compact: Callable[..., AnswerT],
        reference: Callable[..., AnswerT],
        logits: Callable[[AnswerT], Tensor] = logits_of,
        name: str = "the compact model",
        listener: Listener = lambda event, cost: None,
    ) -> None:
        """``compact`` and ``reference`` take the same arguments; ``logits`` reads what they answer; ``name``, to be
        warned of by.
        """
        self.config = config
        self.compact = compact
        self.reference = reference
        self.logits = logits
        self.name = name
        self._listener = listener
        self.strayed = False
        """Whether the bound was broken; from then on ``reference`` answers, until :meth:`reset`."""
        self._random = np.random.default_rng([config.seed, 0xACC])
        self._requests = self._watched = self._candidates = self._fallbacks = self._alarms = 0
        self._extra = self._loss = 0.0

    def __call__(self, *arguments: Any) -> AnswerT:
        """Answer one call."""
        self._requests += 1
        if self.strayed:
            self._fallbacks += 1
            self._listener("float32", self.ne_cost_pct)
            return self.reference(*arguments)
        answer = self.compact(*arguments)
        self._listener("compact", self.ne_cost_pct)
        if self._random.random() < self.config.share:
            self._compare(self.logits(self.reference(*arguments)), self.logits(answer))
        return answer

    @property
    def ne_cost_pct(self) -> float:
        """Expected relative change of NE over the watched candidates, in %; 0 before there are any."""
        return 100.0 * self._extra / self._loss if self._loss else 0.0

    def counters(self) -> dict[str, float]:
        """For metrics: ``requests``, ``watched``, ``watched_candidates``, ``fallbacks`` (answers by the reference),
        ``alarms``, ``ne_cost_pct``.
        """
        return {
            "requests": self._requests,
            "watched": self._watched,
            "watched_candidates": self._candidates,
            "fallbacks": self._fallbacks,
            "alarms": self._alarms,
            "ne_cost_pct": self.ne_cost_pct,
        }

    def reset(self) -> None:
        """Trust the compact model again, and forget what was measured; counts go on."""
        self.strayed = False
        self._candidates = 0
        self._extra = self._loss = 0.0

    def _compare(self, reference_CT: Tensor, compact_CT: Tensor) -> None:
        self._watched += 1
        self._candidates += len(reference_CT)
        found = divergence(reference_CT, compact_CT)
        fade = 0.5 ** (len(reference_CT) / self.config.half_life)
        self._extra = self._extra * fade + found.extra
        self._loss = self._loss * fade + found.loss
        self._listener("watched", self.ne_cost_pct)
        # Not "greater than": a model that answers nan has strayed, too.
        within = math.isfinite(self.ne_cost_pct) and self.ne_cost_pct <= self.config.ne_cost_pct
        if self._candidates >= self.config.least and not within:
            self.strayed = True
            self._alarms += 1
            self._listener("strayed", self.ne_cost_pct)
            _logger.warning(
                "%s costs %.4f %% of NE over the last %d watched candidates, more than the bound of "
                "%.4f %%; float32 answers from here on",
                self.name,
                self.ne_cost_pct,
                self._candidates,
                self.config.ne_cost_pct,
            )
