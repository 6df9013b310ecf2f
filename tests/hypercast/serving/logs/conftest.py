"""Answers to the requests of the tiny platform's next window, and a log of them."""

from pathlib import Path

import pytest

from hypercast.serving.features.asked import Asked
from hypercast.serving.features.state import FeatureState
from hypercast.serving.lanes import ladder
from hypercast.serving.lanes.ladder import Given
from hypercast.serving.logs.served import ServedLog
from hypercast.serving.models.foundation import FoundationScorer
from streaming.workspace import Workspace
from tests.hypercast.serving.conftest import Played
from tests.hypercast.serving.replay import engagements_of, questions_of

Answered = list[tuple[Asked, Given]]


@pytest.fixture(scope="session")
def answered(played: Played) -> Answered:
    """The next window's requests, page by page, and what their candidates are given live."""
    workspace, window = played.workspace(), played.next_window
    scorer = FoundationScorer(snapshot=played.snapshot, workspace=workspace, ages=played.config.log)
    state = FeatureState.open(workspace, as_of=window.start)
    requests, events = workspace.requests(window.index), engagements_of(workspace, window.index)
    said, before = [], window.start
    for row in range(len(requests)):
        one = requests.slice(row, row + 1)
        new = (events["time"] >= before) & (events["time"] < one.time[0])
        state.observe({name: column[new] for name, column in events.items()})
        before = int(one.time[0])
        surfaces = [one.on_surface(index) for index in range(len(workspace.inputs.surfaces))]
        page = [questions_of(workspace, part, given=state.given)[0] for part in surfaces if len(part)]
        asked = state.requests(page)
        said.append((asked, ladder.computed(scorer.score(asked), slice(None))))
    return said


def log_of(folder: Path, workspace: Workspace, answered: Answered, *, every: int = 7) -> ServedLog:
    """A log of those answers under ``folder``, committed every so often."""
    log = ServedLog(folder, tasks=workspace.inputs.tasks)
    for place, (asked, given) in enumerate(answered):
        log.append(asked, given)
        if place % every == 0:
            log.commit()
    log.close()
    return log
