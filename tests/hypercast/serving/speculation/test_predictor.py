"""Where people have habits, they are found; where they have none, chances say so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypercast.serving.speculation.budget import Plan
from hypercast.serving.speculation.predictor import Predicted, Predictor
from streaming.dataset import Dataset, Window
from streaming.workspace import Workspace

CONFIG: dict[str, Any] = {"source": {"popular": 20}, "ranker": {"spans": 2, "negatives": 0.5}}
HABITS = 3
"""Different candidates of each user, whatever the number of requests."""


@pytest.fixture
def habits(rewritten: Callable[..., Path]) -> Workspace:
    """Every user asks for the same few items, which are the user's own, on one surface."""

    def change(row: dict[str, Any]) -> None:
        count = len(row["item_id"])
        row["item_id"] = [1000 + (row["user_id"] * HABITS + place % HABITS) % 60 for place in range(count)]
        row["surface"] = [row["user_id"] % 2] * count

    return Workspace(Dataset.open(rewritten("requests", change)))


def predict(workspace: Workspace, window: Window, rule: str = "learned") -> tuple[Predictor, Predicted]:
    predictor = Predictor.Config.model_validate({**CONFIG, "rule": rule}).build(workspace)
    return predictor, predictor.predict(window.start, horizon=window.end - window.start)


def covered(workspace: Workspace, window: Window, rule: str, pairs: int) -> float:
    """Share of the pairs asked for in the window that are among the best ``pairs``."""
    predictor, predicted = predict(workspace, window, rule)
    chosen = predicted.pairs.take(Plan(predicted.pairs.user_id, predicted.chance).within(pairs))
    asked = predictor.source.reader.between(window.start, window.end)
    distinct = {*zip(asked.user_id[asked.owner].tolist(), asked.item.tolist(), asked.surface.tolist(), strict=True)}
    return float(predictor.was_asked(chosen, asked).sum()) / len(distinct)


def test_habits_are_found(habits: Workspace, window: Window) -> None:
    pairs = 16 * HABITS
    assert covered(habits, window, "learned", pairs) > 0.9
    assert covered(habits, window, "repeats", pairs) > 0.9
    assert covered(habits, window, "popularity", pairs) < 0.6
    assert covered(habits, window, "random", pairs) < 0.4


def test_half_the_budget_covers_half_of_them(habits: Workspace, window: Window) -> None:
    assert covered(habits, window, "learned", 8 * HABITS) == pytest.approx(0.5, abs=0.1)


def test_chances_add_up_to_what_is_asked_for(played, window: Window) -> None:
    workspace = Workspace(Dataset.open(played.dataset))
    predictor, predicted = predict(workspace, window)
    hits = predictor.was_asked(predicted.pairs, predictor.source.reader.between(window.start, window.end)).sum()
    assert predicted.chance.sum() == pytest.approx(hits, rel=0.35)
    assert ((predicted.chance > 0) & (predicted.chance < 1)).all()


def test_one_source_serves_many(played, window: Window) -> None:
    workspace = Workspace(Dataset.open(played.dataset))
    one = Predictor.Config.model_validate(CONFIG).build(workspace)
    other = Predictor.Config.model_validate({**CONFIG, "rule": "random"}).build(workspace, source=one.source)
    horizon = window.end - window.start
    assert one.predict(window.start, horizon=horizon).pairs is other.predict(window.start, horizon=horizon).pairs
    again = other.predict(window.start, horizon=horizon)
    np.testing.assert_array_equal(again.chance, predict(workspace, window, "random")[1].chance)
