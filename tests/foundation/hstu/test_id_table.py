"""Admission never lets two codes share a slot, forgets the least recently seen, and survives a snapshot."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.hstu.id_table import MISS, IdTable

BATCHES = st.lists(st.lists(st.integers(0, 12), max_size=6), max_size=12)


def codes(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


class Model:
    """What an id table should do, with a dict."""

    def __init__(self, capacity: int) -> None:
        self.room = capacity - 1
        self.seen: dict[int, int] = {}
        self.evicted = self.refused = 0

    def admit(self, batch: list[int], step: int) -> None:
        for code in batch:
            if code in self.seen:
                self.seen[code] = step
        for code in sorted(set(batch) - set(self.seen) - {0}):
            if len(self.seen) == self.room:
                oldest = min(self.seen.values())
                if oldest == step:
                    self.refused += 1
                    continue
                victims = [code for code, when in self.seen.items() if when == oldest]
                del self.seen[self.slots_first(victims)]
                self.evicted += 1
            self.seen[code] = step

    def slots_first(self, victims: list[int]) -> int:
        """Among equally old ones the lowest slot goes; which code that is, the table under test says."""
        return min(victims, key=lambda code: self.slot_of[code])

    slot_of: dict[int, int] = {}


@settings(deadline=None)
@given(st.integers(2, 7), BATCHES)
def test_equal_to_a_dict_with_eviction_of_the_least_recent(capacity: int, batches: list[list[int]]) -> None:
    table, model = IdTable(capacity=capacity), Model(capacity)
    everything = np.arange(13)
    for step, batch in enumerate(batches, start=1):
        model.slot_of = dict(zip(everything.tolist(), table.lookup(everything).tolist(), strict=True))
        slots, evicted = table.admit(codes(*batch))
        model.admit(batch, step)
        known = table.lookup(everything)
        assert {int(code) for code in everything[known != MISS]} == set(model.seen)
        assert slots.tolist() == [known[code] for code in batch]
        used = known[known != MISS]
        assert len(set(used.tolist())) == len(used)  # no two codes share a slot
        assert ((used >= 1) & (used < capacity)).all()
        assert len(set(evicted.tolist())) == len(evicted)
        statistics = table.statistics()
        assert statistics["occupancy"] == len(model.seen) / (capacity - 1)
        assert (statistics["evicted"], statistics["refused"]) == (model.evicted, model.refused)


def test_a_code_keeps_its_slot_while_it_is_in() -> None:
    table = IdTable(capacity=4)
    (first,), _ = table.admit(codes(7))
    for other in (8, 9, 10, 11):
        slots, _ = table.admit(codes(other, 7))
        assert slots[1] == first


def test_the_least_recently_seen_makes_room() -> None:
    table = IdTable(capacity=4)
    for code in (1, 2, 3):
        table.admit(codes(code))
    table.admit(codes(1))
    slot = table.lookup(codes(2))
    admitted, evicted = table.admit(codes(4))
    assert evicted.tolist() == slot.tolist() == admitted.tolist()
    assert (table.lookup(codes(1, 2, 3, 4)) != MISS).tolist() == [True, False, True, True]


def test_codes_of_the_same_batch_are_never_evicted_for_one_another() -> None:
    table = IdTable(capacity=3)
    slots, evicted = table.admit(codes(5, 6, 7, 8, 5))
    assert (slots == MISS).tolist() == [False, False, True, True, False]
    assert len(evicted) == 0
    assert table.statistics() == {"occupancy": 1.0, "evicted": 0, "refused": 2}


def test_lookup_never_admits() -> None:
    table = IdTable(capacity=4)
    table.admit(codes(1))
    before = {name: value.clone() for name, value in table.state_dict().items()}
    assert table.lookup(codes(1, 2, 3)).tolist() == [1, MISS, MISS]
    assert all(value.equal(before[name]) for name, value in table.state_dict().items())


def test_the_unknown_code_has_no_slot() -> None:
    table = IdTable(capacity=4)
    slots, evicted = table.admit(codes(0, 0))
    assert slots.tolist() == [MISS, MISS]
    assert table.lookup(codes(0)).tolist() == [MISS]
    assert len(evicted) == 0 and table.statistics()["occupancy"] == 0.0


def test_empty_input() -> None:
    table = IdTable(capacity=4)
    assert len(table.lookup(codes())) == 0
    slots, evicted = table.admit(codes())
    assert len(slots) == len(evicted) == 0


def test_large_codes() -> None:
    large = codes(2**63 - 1, 2**62, 1)
    slots, _ = IdTable(capacity=5).admit(large)
    assert sorted(slots.tolist()) == [1, 2, 3]


def test_the_state_survives_a_round_trip() -> None:
    table, twin = IdTable(capacity=5), IdTable(capacity=5)
    for batch in ([1, 2], [3, 4], [1, 5], [6]):
        table.admit(codes(*batch))
    twin.admit(codes(9))  # what it knew before is forgotten
    twin.load_state_dict(table.state_dict())
    everything = np.arange(12)
    assert twin.lookup(everything).tolist() == table.lookup(everything).tolist()
    for batch in ([7, 1], [8, 8, 2], [10, 11, 3, 4, 5, 6]):
        mine, other = table.admit(codes(*batch)), twin.admit(codes(*batch))
        assert [part.tolist() for part in mine] == [part.tolist() for part in other]
    assert all(value.equal(twin.state_dict()[name]) for name, value in table.state_dict().items())


def test_a_loaded_table_does_not_share_memory() -> None:
    table, twin = IdTable(capacity=5), IdTable(capacity=5)
    table.admit(codes(1))
    twin.load_state_dict(table.state_dict())
    table.admit(codes(2))
    assert twin.lookup(codes(1, 2)).tolist() == [1, MISS]
