"""Entries are kept by content, in bounded memory, those last used."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.histories import ENTRY_BYTES, EncodedHistories, Entry, Key, events_of
from foundation.hstu.cache import KeyValueCache
from foundation.model import FoundationModel
from tests.foundation.asking import NOW, SECOND, Ask, batch_of, built

MODEL: FoundationModel = built()
WEIGHT = ENTRY_BYTES + 100 * 8
"""Of an entry of :func:`entry`."""


def key(owner: int, context: bytes = b"") -> Key:
    return MODEL, owner, b"", context


def entry(*events: int) -> Entry:
    """Of the same weight whatever its events, of which each weighs three numbers beside its keys."""
    tokens = 2 + len(events)
    layer = KeyValueCache(
        keys_SHD=torch.zeros(100 - 2 * len(events) - tokens, dtype=torch.float64),
        values_SHV=torch.zeros(0),
        offsets=torch.tensor([0, tokens]),
        timestamps=torch.zeros(tokens, dtype=torch.int64),
    )
    return Entry(event_QL=column(*events), layers=[layer])


def column(*events: int) -> Tensor:
    return torch.tensor([events, [7] * len(events)], dtype=torch.int64)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([b"", b"other"]), st.booleans())), st.integers(0, 4))
def test_the_last_used_are_kept_in_bounded_memory(calls: list[tuple[int, bytes, bool]], room: int) -> None:
    kept, expected = EncodedHistories(most=room * WEIGHT + WEIGHT // 2), list[tuple[int, bytes]]()
    for owner, context, put in calls:
        name = owner, context
        if put:
            kept.put(key(*name), entry(1, 2))
        assert (kept.find(key(*name), column(1, 2)) is not None) == (name in expected or (put and room > 0))
        if put or name in expected:
            expected = [*(each for each in expected if each != name), name][-room:] if room else []
        assert len(kept) == len(expected)
        assert kept.nbytes == len(expected) * WEIGHT <= kept.most
        assert {owner for owner in range(6) if kept.holds(owner)} == {owner for owner, _ in expected}


def test_as_much_as_is_the_same_from_the_first_event_on() -> None:
    kept = EncodedHistories(most=1 << 20)
    kept.put(key(0), entry(1, 2, 3))
    for events, shared in (
        ((1, 2, 3), 3),
        ((1, 2, 3, 4), 3),
        ((1, 2), 2),
        ((1, 9, 3), 1),
        ((9, 2, 3), None),
        ((), None),
    ):
        found = kept.find(key(0), column(*events))
        assert (found and found[1]) == shared, events


def test_everything_about_an_event_counts() -> None:
    """Item, its attributes, surface, action, time and the bucket of its age."""
    batch = batch_of([Ask(user=0)])
    history = batch.history["all"]
    event_QL = events_of(MODEL, batch)
    assert event_QL.shape == (2 + 3 + 1, len(history.item_L))
    code_FU = batch.items.values().view(2, -1)
    expected = [*code_FU[:, history.item_L], history.surface_L, history.action_L, history.time_L]
    assert torch.equal(event_QL[:-1], torch.stack(expected))
    later = events_of(MODEL, batch_of([Ask(user=0, at=NOW + SECOND * 10**6)], most=100))
    assert (later[-1] >= 1).all()
    assert events_of(built(time_buckets=0), batch).shape == (5, len(history.item_L))
