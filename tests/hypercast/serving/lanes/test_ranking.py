"""What a question is taken to cost."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from hypercast.serving.features.question import Question
from hypercast.serving.lanes.lane import CAUTION, Lane
from hypercast.serving.lanes.ranking import KEPT_UNITS, REQUEST_UNITS, Ranking
from hypercast.serving.models.bundle import Bundle


def ranking(*, user: int, candidates: int, kept: set[int] | None) -> Ranking:
    """``kept``: users of whom a foundation model has kept histories; None for no foundation model."""
    foundation: Any = None if kept is None else SimpleNamespace(keeps=lambda user_id: user_id in kept)
    bundle = SimpleNamespace(foundation_of=lambda surface: foundation)
    items = np.arange(candidates)
    question = Question(request_id=1, surface="home", user_id=user, time=0, context={}, item_ids=items)
    return Ranking(question=question, bundle=cast(Bundle, bundle))


@pytest.mark.parametrize(("kept", "expected"), [(None, REQUEST_UNITS), (set(), REQUEST_UNITS), ({7}, KEPT_UNITS)])
def test_a_history_that_is_kept_costs_the_foundation_model_less(kept: set[int] | None, expected: float) -> None:
    asked = ranking(user=7, candidates=30, kept=kept)
    assert asked.foundation_units == 30 + expected
    assert asked.units == 30 + REQUEST_UNITS
    assert ranking(user=8, candidates=30, kept=kept).foundation_units == 30 + REQUEST_UNITS


@pytest.mark.parametrize("hits", [0.1, 0.5, 0.9])
def test_a_lane_tells_hits_and_misses_apart_whatever_their_mixture(hits: float) -> None:
    """By the units of each; what the rarer ones take is not lost in a median."""
    known, unknown = (ranking(user=7, candidates=100, kept=kept).foundation_units for kept in ({7}, set[int]()))
    seconds = {known: 0.010, unknown: 0.014}
    lane: Lane[int, int] = Lane(name="test", work=lambda jobs: jobs, batch=1, waiting=1)
    try:
        for kept in np.random.default_rng(0).random(40) < hits:
            units = known if kept else unknown
            lane._learn(units, seconds[units])
        for units, expected in seconds.items():
            assert lane.seconds(units) == pytest.approx(CAUTION * expected)
    finally:
        lane.close()
