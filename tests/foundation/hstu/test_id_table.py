"""Admission never lets two codes share a slot, evicts what the policy says, and survives a snapshot."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.hstu.eviction import DAY, Eviction, LeastFrequent, LeastRecent, TimeToLive
from foundation.hstu.id_table import MISS, IdTable

HOUR = DAY // 24
POLICIES = {
    "lru": LeastRecent(),
    "lfu": LeastFrequent(half_life_days=0.7),
    "ttl": TimeToLive(days=0.5),
}
BATCHES = st.lists(st.tuples(st.integers(0, 30), st.lists(st.integers(0, 12), max_size=6)), max_size=12)
"""Each an hour, which may go back, and codes."""


def codes(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


class Model:
    """What an id table should do, with a dict of all batches, by step and time, that a code was seen in."""

    def __init__(self, capacity: int, policy: str) -> None:
        self.room = capacity - 1
        self.policy = policy
        self.seen: dict[int, list[tuple[int, int]]] = {}
        self.slot_of: dict[int, int] = {}
        self.now = self.evicted = self.refused = self.collisions = 0

    def admit(self, batch: list[int], step: int, time: int) -> None:
        self.now = max(self.now, time)
        if self.policy == "ttl":
            for code in [code for code, seen in self.seen.items() if seen[-1][1] < self.now - 0.5 * DAY]:
                self.remove(code)
        asked = sorted(set(batch) - {0})
        for code in asked:
            if code in self.seen:
                self.seen[code].append((step, self.now))
        for code in asked:
            if code in self.seen:
                continue
            if len(self.seen) == self.room:
                spare = [other for other in self.seen if other not in asked]
                if not spare:
                    self.refused += 1
                    self.collisions += batch.count(code)
                    continue
                self.remove(min(spare, key=lambda other: (self.worth(other), self.slot_of[other])))
            self.seen[code] = [(step, self.now)]

    def worth(self, code: int) -> float:
        seen = self.seen[code]
        if self.policy == "lfu":
            return sum(0.5 ** ((self.now - time) / (0.7 * DAY)) for _, time in seen)
        return seen[-1][self.policy == "ttl"]

    def remove(self, code: int) -> None:
        del self.seen[code]
        self.evicted += 1


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None)
@given(capacity=st.integers(2, 7), batches=BATCHES)
def test_equal_to_a_dict(policy: str, capacity: int, batches: list[tuple[int, list[int]]]) -> None:
    table, model = IdTable(capacity=capacity, eviction=POLICIES[policy]), Model(capacity, policy)
    everything = np.arange(13)
    for step, (hour, batch) in enumerate(batches, start=1):
        before = table.lookup(everything)
        model.slot_of = dict(zip(everything.tolist(), before.tolist(), strict=True))
        slots, evicted = table.admit(codes(*batch), time=hour * HOUR)
        model.admit(batch, step, hour * HOUR)
        known = table.lookup(everything)
        assert {int(code) for code in everything[known != MISS]} == set(model.seen)
        assert slots.tolist() == [known[code] for code in batch]
        used = known[known != MISS]
        assert len(set(used.tolist())) == len(used)  # no two codes share a slot
        assert ((used >= 1) & (used < capacity)).all()
        assert len(set(evicted.tolist())) == len(evicted)
        assert set(before[(before != MISS) & (known != before)].tolist()) <= set(evicted.tolist())
        statistics = table.statistics()
        assert statistics.pop("occupancy") == len(model.seen) / (capacity - 1)
        assert statistics == {name: getattr(model, name) for name in ("evicted", "refused", "collisions")}


def test_a_code_keeps_its_slot_while_it_is_in() -> None:
    table = IdTable(capacity=4)
    (first,), _ = table.admit(codes(7), time=0)
    for other in (8, 9, 10, 11):
        slots, _ = table.admit(codes(other, 7), time=0)
        assert slots[1] == first


def test_the_least_recently_seen_makes_room() -> None:
    table = IdTable(capacity=4)
    for code in (1, 2, 3):
        table.admit(codes(code), time=0)
    table.admit(codes(1), time=0)
    slot = table.lookup(codes(2))
    admitted, evicted = table.admit(codes(4), time=0)
    assert evicted.tolist() == slot.tolist() == admitted.tolist()
    assert (table.lookup(codes(1, 2, 3, 4)) != MISS).tolist() == [True, False, True, True]


def test_codes_of_the_same_batch_are_never_evicted_for_one_another() -> None:
    table = IdTable(capacity=3)
    slots, evicted = table.admit(codes(5, 6, 7, 8, 5, 8), time=0)
    assert (slots == MISS).tolist() == [False, False, True, True, False, True]
    assert len(evicted) == 0
    assert table.statistics() == {"occupancy": 1.0, "evicted": 0, "refused": 2, "collisions": 3}


def test_lookup_never_admits() -> None:
    table = IdTable(capacity=4)
    table.admit(codes(1), time=0)
    before = {name: value.clone() for name, value in table.state_dict().items()}
    assert table.lookup(codes(1, 2, 3)).tolist() == [1, MISS, MISS]
    assert all(value.equal(before[name]) for name, value in table.state_dict().items())


def test_the_unknown_code_has_no_slot() -> None:
    table = IdTable(capacity=4)
    slots, evicted = table.admit(codes(0, 0), time=0)
    assert slots.tolist() == [MISS, MISS]
    assert table.lookup(codes(0)).tolist() == [MISS]
    assert len(evicted) == 0 and table.statistics()["occupancy"] == 0.0


def test_empty_input() -> None:
    table = IdTable(capacity=4)
    assert len(table.lookup(codes())) == 0
    slots, evicted = table.admit(codes(), time=0)
    assert len(slots) == len(evicted) == 0


def test_large_codes() -> None:
    large = codes(2**63 - 1, 2**62, 1)
    slots, _ = IdTable(capacity=5).admit(large, time=0)
    assert sorted(slots.tolist()) == [1, 2, 3]


@pytest.mark.parametrize("eviction", POLICIES.values(), ids=POLICIES)
def test_the_state_survives_a_round_trip(eviction: Eviction) -> None:
    table, twin = (IdTable(capacity=5, eviction=eviction) for _ in range(2))
    for hour, batch in enumerate(([1, 2], [3, 4], [1, 5], [6])):
        table.admit(codes(*batch), time=5 * hour * HOUR)
    twin.admit(codes(9), time=99 * HOUR)  # what it knew before is forgotten
    twin.load_state_dict(table.state_dict())
    everything = np.arange(12)
    assert twin.lookup(everything).tolist() == table.lookup(everything).tolist()
    for hour, batch in enumerate(([7, 1], [8, 8, 2], [10, 11, 3, 4, 5, 6])):
        mine, other = (each.admit(codes(*batch), time=(20 + hour) * HOUR) for each in (table, twin))
        assert [part.tolist() for part in mine] == [part.tolist() for part in other]
    assert all(value.equal(twin.state_dict()[name]) for name, value in table.state_dict().items())


def test_a_loaded_table_does_not_share_memory() -> None:
    table, twin = IdTable(capacity=5), IdTable(capacity=5)
    table.admit(codes(1), time=0)
    twin.load_state_dict(table.state_dict())
    table.admit(codes(2), time=0)
    assert twin.lookup(codes(1, 2)).tolist() == [1, MISS]
