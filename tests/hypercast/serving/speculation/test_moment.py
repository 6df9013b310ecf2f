"""Requests that nobody has sent yet carry what they would carry, as of just before the moment."""

from dataclasses import replace

import numpy as np
import pytest

from hypercast.serving.speculation.moment import OF_USER, requests_at
from hypercast.serving.speculation.pairs import Pairs, PairSource
from streaming.requests import Requests
from streaming.workspace import Workspace

WINDOW = 4


@pytest.fixture(scope="module")
def source(workspace: Workspace) -> PairSource:
    return PairSource.Config().build(workspace)


def pairs_of(requests: Requests) -> Pairs:
    return Pairs(
        user_id=requests.user_id[requests.owner],
        item_id=requests.item_id,
        item=requests.item,
        surface=requests.surface,
        feature=np.zeros((len(requests.item), 0), np.float32),
    )


def test_features_of_users_are_those_that_a_request_is_written_with(workspace: Workspace, source: PairSource) -> None:
    stored = workspace.requests(WINDOW)
    names = workspace.inputs.dense
    of_user = [column for column, name in enumerate(names) if name.startswith(OF_USER)]
    compared = 0
    for index in range(0, len(stored), 5):
        one = stored.slice(index, index + 1)
        now = int(one.time[0])
        asked = source.asked(now)
        shown = set(zip(asked.item.tolist(), asked.surface.tolist(), strict=True))
        known = [pair in shown for pair in zip(one.item.tolist(), one.surface.tolist(), strict=True)]
        one = (
            replace(one, offsets=np.array([0, sum(known)]))
            if all(known)
            else one._of_candidates(np.flatnonzero(known), np.array([sum(known)]))
        )
        made = requests_at(now, pairs_of(one), asked, workspace)
        np.testing.assert_allclose(made.dense[:, of_user], one.dense[:, of_user], rtol=2e-6, atol=1e-7)
        compared += len(one.item)
        assert made.user_id.tolist() == one.user_id.tolist() and made.time.tolist() == [now]
        earlier = np.flatnonzero(asked.user_id == one.user_id[0])[-1]
        assert made.context.tolist() == asked.context[[earlier]].tolist()
    assert len(of_user) == 11 and compared > 50


def test_features_of_items_are_those_of_the_last_time_they_were_shown(workspace: Workspace, source: PairSource) -> None:
    now = workspace.dataset.window(WINDOW).start
    pairs, asked = source.at(now), source.asked(now)
    made = requests_at(now, pairs, asked, workspace)
    column = workspace.inputs.dense.index("item_popularity")
    last = {}
    for row, key in enumerate(zip(asked.item.tolist(), asked.surface.tolist(), strict=True)):
        last[key] = asked.dense[row, column]
    expected = [last[key] for key in zip(pairs.item.tolist(), pairs.surface.tolist(), strict=True)]
    assert made.dense[:, column].tolist() == expected
    assert len(set(expected)) > 10


def test_a_user_is_one_request(workspace: Workspace, source: PairSource) -> None:
    now = workspace.dataset.window(WINDOW).start
    pairs = source.at(now)
    made = requests_at(now, pairs, source.asked(now), workspace)
    assert made.user_id.tolist() == np.unique(pairs.user_id).tolist()
    assert made.user_id[made.owner].tolist() == pairs.user_id.tolist()
    assert (workspace.users.ids[made.user] == made.user_id).all()
    assert made.candidate_id.tolist() == [place for size in np.diff(made.offsets) for place in range(size)]


def test_a_column_that_cannot_be_made_goes_with_its_owner(workspace: Workspace, source: PairSource) -> None:
    """A feature of the user that the engagements do not tell: the value of the user's last request."""
    now = workspace.dataset.window(WINDOW).start
    pairs, asked = source.at(now), source.asked(now)
    renamed = Workspace(workspace.dataset)
    renamed.__dict__["inputs"] = replace(workspace.inputs, dense=["user_mood", *workspace.inputs.dense[1:]])
    made = requests_at(now, pairs, asked, renamed)
    owner = asked.user_id[asked.owner]
    expected = [asked.dense[np.flatnonzero(owner == user)[-1], 0] for user in pairs.user_id.tolist()]
    assert made.dense[:, 0].tolist() == expected
