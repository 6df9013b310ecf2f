"""What is kept of what was served: nothing waits for it, nothing that fails in it fails anything else."""

import threading
from typing import Any

import numpy as np
import pytest

from hypercast.serving.features.question import Question
from hypercast.serving.features.state import FeatureState
from hypercast.serving.lanes.ladder import Given, joined, nothing
from hypercast.serving.logs import keeper
from hypercast.serving.logs.keeper import VectorKeeper
from hypercast.serving.metrics import Metrics
from tests.hypercast.serving.conftest import Played
from tests.hypercast.serving.world import until


class Log:
    """Remembers requests; fails, or waits, when told to."""

    def __init__(self) -> None:
        self.requests: list[int] = []
        self.commits, self.fails, self.closed = 0, False, False
        self.open = threading.Event()
        self.open.set()

    def append(self, asked: Any, given: Given) -> None:
        assert self.open.wait(20)
        if self.fails:
            raise OSError("no disk")
        assert len(asked.item_id) == len(given.rung_C)
        self.requests += asked.request_id.tolist()

    def commit(self) -> None:
        self.commits += 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def state(played: Played) -> FeatureState:
    workspace = played.workspace()
    return FeatureState.open(workspace, as_of=workspace.dataset.windows[-1].end)


def served(state: FeatureState, number: int) -> Any:
    question = Question(
        **{"request_id": number, "surface": "surface_0", "user_id": 100, "time": state.as_of + number},
        context=dict.fromkeys(("hour", "store", "weekday")),
        item_ids=np.array([1000, 1001]),
        dense={name: np.zeros(2, np.float32) for name in state.given},
    )
    return state.requests([question]), nothing(2, tasks=2)


def keep(log: Log) -> tuple[VectorKeeper, Metrics]:
    metrics = Metrics()
    return VectorKeeper(store=None, log=log, commit_seconds=0.05, metrics=metrics), metrics


def test_all_that_was_served_is_logged_by_the_end(state: FeatureState) -> None:
    log = Log()
    kept, _ = keep(log)
    for number in range(30):
        kept.served(*served(state, number))
    kept.close()
    assert sorted(log.requests) == list(range(30)) and log.commits >= 1 and log.closed


def test_a_log_that_is_stuck_loses_the_oldest_and_counts_them(
    state: FeatureState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "MOST", 4)
    log = Log()
    log.open.clear()
    kept, metrics = keep(log)
    kept.served(*served(state, 0))
    until(lambda: not kept._waiting)  # the log has taken it, and is stuck
    for number in range(1, 8):
        kept.served(*served(state, number))
    assert metrics.value("kept_total", outcome="lost") == 3
    log.open.set()
    kept.close()
    assert log.requests == [0, 4, 5, 6, 7]


def test_a_log_that_fails_ends_nothing(state: FeatureState) -> None:
    log = Log()
    log.fails = True
    kept, metrics = keep(log)
    kept.served(*served(state, 0))
    until(lambda: metrics.value("kept_total", outcome="failed") >= 1)
    log.fails = False
    kept.served(*served(state, 1))
    kept.close()
    assert log.requests == [1]


def test_requests_in_a_row_are_as_each_alone() -> None:
    both = joined([nothing(2, tasks=1), nothing(3, tasks=1)])
    assert len(both.rung_C) == len(both.status_C) == len(both.age_C) == len(both.logit_CT) == 5
    assert not both.present_C.any()
