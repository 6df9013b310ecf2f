"""What stands in for a missing vector is what a plain loop finds."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypercast.serving.speculation.misses import MISSES, answer
from hypercast.serving.speculation.speculated import Speculated
from hypercast.snapshot import Snapshot

Key = tuple[int, int, int]
KEYS = st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 1))


def speculated(keys: list[Key], snapshot: Snapshot | None = None) -> Speculated:
    """A round that computed those keys: user, item, surface."""
    random = np.random.default_rng(len(keys))
    columns = np.array(keys, np.int64).reshape(-1, 3).T
    users = np.unique(columns[0])
    return Speculated(
        snapshot=snapshot,  # type: ignore[arg-type]
        now=0,
        user_id=columns[0],
        item_id=columns[1],
        surface=columns[2],
        chance=np.ones(len(keys)),
        vector=random.normal(size=(len(keys), 3)).astype(np.float32),
        logit=random.normal(size=(len(keys), 2)).astype(np.float32),
        users=users,
        encoding=random.normal(size=(len(users), 4)).astype(np.float32),
    )


def zeros(one: Speculated, keys: list[Key], key: Key) -> np.ndarray | None:
    return None


def user(one: Speculated, keys: list[Key], key: Key) -> np.ndarray | None:
    rows = [row for row, other in enumerate(keys) if other[0] == key[0]]
    return one.vector[rows].mean(axis=0) if rows else None


def nearest(one: Speculated, keys: list[Key], key: Key) -> np.ndarray | None:
    place = {int(each): row for row, each in enumerate(one.users)}
    rows = [row for row, other in enumerate(keys) if other[1:] == key[1:]]
    if key[0] not in place or not rows:
        return None
    apart = [np.linalg.norm(one.encoding[place[keys[row][0]]] - one.encoding[place[key[0]]]) for row in rows]
    return one.vector[rows[int(np.argmin(apart))]]


@given(keys=st.lists(KEYS, unique=True, max_size=12), wanted=st.lists(KEYS, max_size=12))
def test_every_policy_is_that_of_a_loop(keys: list[Key], wanted: list[Key]) -> None:
    one = speculated(keys)
    user_id, item_id, surface = np.array(wanted, np.int64).reshape(-1, 3).T
    policies: dict[str, Callable[..., np.ndarray | None]] = {"zeros": zeros, "user": user, "nearest": nearest}
    assert set(policies) == set(MISSES)
    for miss in MISSES:
        said = answer(one, user_id=user_id, item_id=item_id, surface=surface, miss=miss)
        assert said.own.tolist() == [key in keys for key in wanted]
        for row, key in enumerate(wanted):
            expected = one.vector[keys.index(key)] if key in keys else policies[miss](one, keys, key)
            assert said.present[row] == (expected is not None)
            np.testing.assert_allclose(said.vector[row], np.zeros(3) if expected is None else expected, atol=1e-6)
            if key in keys:
                assert said.logit[row].tolist() == one.logit[keys.index(key)].tolist()
            elif expected is None:
                assert not said.logit[row].any()


@given(keys=st.lists(KEYS, unique=True, min_size=1, max_size=12), pairs=st.integers(0, 12))
def test_a_smaller_round_knows_its_own_users_only(keys: list[Key], pairs: int) -> None:
    part = speculated(keys).first(pairs)
    assert len(part) == min(pairs, len(keys))
    assert part.users.tolist() == sorted({key[0] for key in keys[:pairs]})
    vector, logit = part.aggregates()
    assert vector.shape == (len(part.users), 3) and logit.shape == (len(part.users), 2)
    for row, each in enumerate(part.users.tolist()):
        own = [place for place, key in enumerate(keys[:pairs]) if key[0] == each]
        np.testing.assert_allclose(vector[row], part.vector[own].mean(axis=0), atol=1e-6)


def test_surfaces_that_were_never_computed_are_missed() -> None:
    one = speculated([(1, 2, 0), (1, 3, 0)])
    for miss in ("zeros", "nearest"):
        far = np.array([7])
        said = answer(one, user_id=np.array([1]), item_id=np.array([2]), surface=far, miss=miss)
        assert not said.present.any()


@pytest.mark.parametrize("miss", MISSES)
def test_an_empty_round_knows_nothing(miss) -> None:
    one = np.array([1])
    assert not answer(speculated([]), user_id=one, item_id=one, surface=one, miss=miss).present.any()
