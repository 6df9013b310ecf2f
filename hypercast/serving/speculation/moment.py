"""Pairs as requests that somebody might send at a time, with everything a request carries, as of just before it.

What concerns the user is derived from the engagement log: dense features whose names begin with ``user_``, by
:class:`streaming.importers.mapping.as_of.AsOfFeatures`, as far as it knows them. Everything else is what was logged
last: context and other ``user_`` features with the user's last request, features of items when the item was last shown
on the surface. How popular an item is, or how many stores promote it, may so be as old as that; the log alone does not
tell of what nobody has been shown.

Shape legend: N pairs, U users, A candidates asked for, E engagements, F dense features, T tasks.
"""

import numpy as np
import numpy.typing as npt

from hypercast.serving.speculation.asked_log import AskedLog, Int
from hypercast.serving.speculation.counts import find
from hypercast.serving.speculation.pairs import Pairs
from streaming.catalogue import UNKNOWN
from streaming.importers.mapping.as_of import AsOfFeatures, Events
from streaming.requests import Requests, Supervision
from streaming.workspace import Workspace

OF_USER = "user_"
_ALL = 1 << 40


def requests_at(now: int, pairs: Pairs, asked: AskedLog, workspace: Workspace) -> Requests:
    """One request a user for all of the user's pairs, users ascending; its number is the user's place.

    Args:
        now: microseconds UTC; the time of the requests. Nothing that happened then or later is read (laws L1, L5).
        pairs: ascending by user, each user and each pair shown before, as :class:`PairSource` makes them.
        asked: what they were made of.
    """
    users, first = np.unique(pairs.user_id, return_index=True)
    candidates, tasks = len(pairs), len(workspace.dataset.config.tasks)
    return Requests(
        request_id=np.arange(len(users)),
        user_id=users,
        user=workspace.users.rows(users),
        time=np.full(len(users), now),
        context=asked.context[_last_of(users, asked.user_id)],
        tags={},
        offsets=np.append(first, candidates).astype(np.int64),
        candidate_id=np.arange(candidates) - np.repeat(first, np.diff(np.append(first, candidates))),
        item_id=pairs.item_id,
        item=pairs.item,
        surface=pairs.surface,
        dense=_dense(now, pairs, asked, workspace, users=users),
        supervision=Supervision(
            label=np.zeros((candidates, tasks), np.float32),
            known_time=np.full((candidates, tasks), Supervision.NEVER),
            weight=np.ones(candidates, np.float32),
            stratum=np.zeros(candidates, np.int8),
        ),
    )


def _dense(now: int, pairs: Pairs, asked: AskedLog, workspace: Workspace, *, users: Int) -> npt.NDArray[np.float32]:
    """Float32 ``[N, F]``."""
    names, surfaces = workspace.inputs.dense, len(workspace.inputs.surfaces)
    shown, newest = np.unique((asked.item * surfaces + asked.surface)[::-1], return_index=True)
    at, _ = find(shown, pairs.item * surfaces + pairs.surface)
    dense = asked.dense[len(asked.item) - 1 - newest[at]]
    user = np.searchsorted(users, pairs.user_id)
    carried = [column for column, name in enumerate(names) if name.startswith(OF_USER)]
    dense[:, carried] = asked.dense[_last_of(users, asked.user_id[asked.owner])[user]][:, carried]
    made = _made(now, pairs, workspace, users=users, user=user)
    for column, name in enumerate(names):
        if name in made:
            dense[:, column] = made[name]
    return dense


def _made(now: int, pairs: Pairs, workspace: Workspace, *, users: Int, user: Int) -> dict[str, npt.NDArray[np.float32]]:
    """Features of users that follow from their engagements before ``now``, by name, float32 ``[N]``."""
    log, items = workspace.engagements, workspace.items
    start, end = log.spans(users, np.full(len(users), now), max_length=_ALL)
    events = log.take(start, end)
    attributes = {name: _numbered(items.code[:, column]) for column, name in enumerate(items.features) if column}
    features = AsOfFeatures(items=len(items.ids) + 1, attributes=attributes, surfaces=len(workspace.inputs.surfaces))
    said = features.window(
        Events(
            user=np.repeat(np.arange(len(users)), end - start),
            item=events.item.astype(np.int64),
            surface=events.surface.astype(np.int64),
            time=events.time,
        ),
        Events(user=user, item=pairs.item, surface=pairs.surface, time=np.full(len(pairs), now)),
    )
    names = features.names(list(attributes))
    return {name: said[:, column] for column, name in enumerate(names) if name.startswith(OF_USER)}


def _last_of(users: Int, user_id: Int) -> Int:
    """The last place of each of ``users`` in ``user_id``, int64 ``[U]``; 0 where there is none."""
    last = np.zeros(len(users), np.int64)
    at, known = find(users, user_id)
    last[at[known]] = np.flatnonzero(known)  # the later ones overwrite
    return last


def _numbered(code: Int) -> Int:
    """Values from 0 in place of codes, -1 for what is not known; int64 ``[items + 1]``."""
    values = np.unique(code[code != UNKNOWN])
    return np.where(code == UNKNOWN, -1, np.searchsorted(values, code))
