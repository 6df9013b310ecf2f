"""Requests that carry their histories: what makes two of them one page."""

import numpy as np

from hypercast.serving.features.asked import merge
from hypercast.serving.features.state import FeatureState
from streaming.workspace import Workspace
from tests.hypercast.serving.features.test_state import columns, questions


def test_a_page_is_of_one_history_however_many_engagements_it_has(workspace: Workspace) -> None:
    as_of = workspace.dataset.windows[-1].end
    state = FeatureState.open(workspace, as_of=as_of, config=FeatureState.Config(events=20, rehearsed=0))
    state.observe(columns([(100, 1000, 0, 0, second) for second in range(20)], as_of))
    asked = [state.requests(questions(as_of + 60)[:1]) for _ in range(2)]
    assert len(merge(asked).pages()[0]) == 1
    # As many as before, but others: with more than are held, the oldest go.
    for second in range(20, 40):
        state.observe(columns([(100, 1001, 0, 0, second)], as_of))
        asked.append(state.requests(questions(as_of + 60)[:1]))
    together = merge(asked)
    assert len({len(past.time) for past in together.past}) < len(asked) - 1
    pages, place = together.pages()
    assert len(pages) == len(asked) - 1
    for row, page in zip(together.owner, pages.owner[place], strict=True):
        np.testing.assert_array_equal(together.past[row].time, pages.past[page].time)
