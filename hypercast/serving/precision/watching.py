"""A compact model while it answers: a watch over its accuracy, and a probe of what flows through its layers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from hypercast.serving.precision.compact import CompactModel
from hypercast.serving.precision.probe import Probe, predicted_errors
from hypercast.serving.precision.watch import AccuracyWatch, Event, Listener

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, kw_only=True)
class Watching:
    """How one model is watched.

    Attributes:
        name: to be warned of by.
        config: of the watch.
        statistics: of the probe; it keeps nothing but moments.
        listener: of the watch.
        layers: hears after every watched call what error statistics of live traffic lead to expect of each layer that
            is compact, by name; calls that were not watched are in the statistics, too.
    """

    name: str
    config: AccuracyWatch.Config
    statistics: Probe.Config
    listener: Listener
    layers: Callable[[Mapping[str, float]], None]

    def over(
        self, made: CompactModel[Any], *, compact: Callable[..., AnswerT], reference: Callable[..., AnswerT]
    ) -> AccuracyWatch[AnswerT]:
        """Answers by ``compact``, which calls the model of ``made``, as long as it does not stray."""
        probe = Probe(config=self.statistics, model=made.model)

        def hear(event: Event, cost: float) -> None:
            self.listener(event, cost)
            if event == "watched":
                errors = predicted_errors(probe, made.model)
                self.layers({layer: error for layer, error in errors.items() if layer in made.layers})

        return AccuracyWatch(config=self.config, compact=compact, reference=reference, name=self.name, listener=hear)
