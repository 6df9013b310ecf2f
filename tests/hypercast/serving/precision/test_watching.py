"""While a compact model answers it is known what it costs, and what its layers do to the traffic of the moment."""

from collections.abc import Mapping

import torch

from hypercast.serving.precision.compact import Precision, compact
from hypercast.serving.precision.probe import Probe
from hypercast.serving.precision.watch import AccuracyWatch, Event
from hypercast.serving.precision.watching import Watching
from tests.hypercast.serving.precision.world import World, never_float32


def test_watched_calls_tell_of_every_compact_layer_and_answers_are_the_compact_ones(world: World) -> None:
    made = compact(world.model, Precision(), world.sample, timer=never_float32)
    told: list[Mapping[str, float]] = []
    heard: list[Event] = []
    watching = Watching(
        name="it",
        config=AccuracyWatch.Config(share=0.5, seed=3),
        statistics=Probe.Config(every=1),
        listener=lambda event, cost: heard.append(event),
        layers=told.append,
    )
    watch = watching.over(made, compact=made, reference=world.model)
    with torch.no_grad():
        for call in world.later * 3:
            assert (watch(*call).logit_CT == made(*call).logit_CT).all()
    assert heard.count("compact") == 3 * len(world.later)
    assert 0 < heard.count("watched") == len(told) < heard.count("compact")
    measured = {each.name: each.chosen.error for each in made.report.of("linear") if each.name in made.layers}
    assert told[-1].keys() == measured.keys() != set()
    for layer, error in told[-1].items():
        assert measured[layer] / 3 < error < 3 * measured[layer], layer
