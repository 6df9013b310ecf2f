"""What stands in for a vector that speculation has not computed.

=========  =========================================================================================================
zeros      nothing, with the mask bit off
user       the user's aggregate: the mean of what was computed for the user. The online store's ladder has it too
nearest    the item's vector of the user most like this one, by distance between what the model makes of both before it
           looks at any item; exact, among those for whom the item was computed on this surface
=========  =========================================================================================================

Users of whom nothing was computed have neither aggregate nor neighbour.

Shape legend: C candidates asked for, N pairs, U users, R width of vectors, D model width, T tasks.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from hypercast.serving.speculation.asked_log import Int
from hypercast.serving.speculation.counts import find
from hypercast.serving.speculation.speculated import Float32, Speculated

Miss = Literal["zeros", "user", "nearest"]
MISSES: tuple[Miss, ...] = get_args(Miss)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """For C candidates: ``vector`` float32 ``[C, R]`` and ``logit`` float32 ``[C, T]``, zeros where there is none.

    ``own``, ``present``: bool ``[C]``, where the pair's own vector was there, and where any.
    """

    vector: Float32
    logit: Float32
    own: npt.NDArray[np.bool_]
    present: npt.NDArray[np.bool_]


def answer(speculated: Speculated, *, user_id: Int, item_id: Int, surface: Int, miss: Miss) -> Answer:
    """What is known of the candidates that users ask for after the round; all int64 ``[C]``."""
    users, user_C = speculated.users, np.searchsorted(speculated.users, user_id)
    known_C = find(users, user_id)[1]
    things = np.unique(np.stack([speculated.item_id, speculated.surface], axis=1), axis=0)
    thing_N = _row(things, speculated.item_id, speculated.surface)
    thing_C = _row(things, item_id, surface)
    pair_N = np.searchsorted(users, speculated.user_id) * len(things) + thing_N
    by_pair = np.argsort(pair_N)
    at_C, own_C = find(pair_N[by_pair], user_C * len(things) + thing_C)
    own_C &= known_C & (thing_C >= 0)
    source_C = np.full(len(user_id), -1)
    source_C[own_C] = by_pair[at_C[own_C]]
    if miss == "nearest":
        missed = np.flatnonzero(~own_C & known_C & (thing_C >= 0))
        holder_N = np.searchsorted(users, speculated.user_id)
        source_C[missed] = _nearest(speculated.encoding, user_C[missed], thing_C[missed], holder_N, thing_N)
    vectors, logits = speculated.vector, speculated.logit
    if miss == "user":
        mean_vector, mean_logit = speculated.aggregates()
        vectors, logits = np.concatenate([vectors, mean_vector]), np.concatenate([logits, mean_logit])
        source_C = np.where(~own_C & known_C, len(speculated) + user_C, source_C)
    present_C = source_C >= 0
    return Answer(
        vector=np.where(present_C[:, None], _take(vectors, source_C), np.float32(0)),
        logit=np.where(present_C[:, None], _take(logits, source_C), np.float32(0)),
        own=own_C,
        present=present_C,
    )


def _row(things: Int, item_id: Int, surface: Int) -> Int:
    """Which of ``things`` each is, -1 for none of them."""
    items = np.unique(things[:, 0])
    item, known = find(items, item_id)
    width = int(things[:, 1].max(initial=0)) + 1
    codes = np.searchsorted(items, things[:, 0]) * width + things[:, 1]
    at, found = find(codes, item * width + surface)
    return np.where(known & found & (surface < width), at, -1)


def _nearest(encoding: Float32, user: Int, thing: Int, holder_N: Int, thing_N: Int) -> Int:
    """The pair of the same thing whose user is nearest, for each (user, thing); the first of equally near ones."""
    by_thing = np.argsort(thing_N, kind="stable")
    first = np.searchsorted(thing_N[by_thing], np.arange(int(thing_N.max(initial=-1)) + 2))
    found = np.empty(len(user), np.int64)
    order = np.argsort(thing, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(thing[order])) + 1):
        if len(rows):
            pairs = by_thing[first[thing[rows[0]]] : first[thing[rows[0]] + 1]]
            apart = encoding[user[rows], None] - encoding[holder_N[pairs]][None]
            found[rows] = pairs[np.square(apart).sum(axis=2).argmin(axis=1)]
    return found


def _take(values: Float32, index: Int) -> Float32:
    """Rows of ``values``, any where ``index`` is -1."""
    return np.concatenate([values, np.zeros((1, values.shape[1]), np.float32)])[index]
