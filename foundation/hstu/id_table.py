"""Admission of unbounded ids to a bounded embedding table; which make room for others is a policy's choice."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foundation.hstu.eviction import NOTHING, Clock, Eviction, LeastRecent
from streaming.catalogue import UNKNOWN

MISS = 0
"""The slot shared by unknown values and by codes that have no slot of their own."""


class IdTable(nn.Module):
    """Maps codes (63-bit hashes) to slots ``1 .. capacity - 1``; no two codes ever share one.

    Ids enter in training only, as they are first seen, so the mapping knows nothing of the future (law L5). When full,
    the slots of lowest priority (see :mod:`foundation.hstu.eviction`) that the batch does not ask for make room; every
    embedding that looks up by them zeroes their rows and optimiser state.

    State is kept as buffers, so that snapshots and checkpoints carry the mapping beside the weights it belongs to. They
    stay on the host, wherever the embedding is.

    Attributes:
        code: int64 by slot, :data:`UNKNOWN` where free.
        priority: float64 by slot.
        counters: int64: slots in use; ids evicted and ids refused since the start; lookups that collided in the shared
            slot since the start, for lack of one of their own.
        clock: int64: see :class:`foundation.hstu.eviction.Clock`.
    """

    code: Tensor
    priority: Tensor
    counters: Tensor
    clock: Tensor
    _sorted_code: np.ndarray
    _sorted_slot: np.ndarray

    def __init__(self, *, capacity: int, eviction: Eviction | None = None) -> None:
        super().__init__()
        self.capacity = capacity
        self.eviction = eviction or LeastRecent()
        with torch.device("cpu"):
            self.register_buffer("code", torch.full((capacity,), UNKNOWN, dtype=torch.int64))
            self.register_buffer("priority", torch.full((capacity,), NOTHING, dtype=torch.float64))
            self.register_buffer("counters", torch.zeros(4, dtype=torch.int64))
            self.register_buffer("clock", torch.zeros(2, dtype=torch.int64))
        self._index()

    def lookup(self, code: np.ndarray) -> np.ndarray:
        """Slots of ``code``, int64; :data:`MISS` for codes never admitted, evicted, or unknown."""
        distinct, place = np.unique(code, return_inverse=True)
        return self._find(distinct)[place]

    def admit(self, code: np.ndarray, *, time: int) -> tuple[np.ndarray, np.ndarray]:
        """Slots of ``code``, giving one to each new code.

        Codes beyond what the whole table can hold stay at :data:`MISS` and are counted as refused.

        Args:
            code: int64.
            time: latest event time of the batch, microseconds. The clock never goes back, so batches may.

        Returns:
            the slots; and those that were taken from another code or have expired, each once.
        """
        clock = self._advance(time)
        expired = self._expire(clock)
        distinct, place = np.unique(code, return_inverse=True)
        slot = self._find(distinct)
        new = np.flatnonzero((slot == MISS) & (distinct != UNKNOWN))
        free = self._free(len(new))
        evicted = self._lowest(len(new) - len(free), spared=np.concatenate([slot, free]))
        granted = np.concatenate([free, evicted])
        slot[new[: len(granted)]] = granted
        self._hand_over(granted, distinct[new[: len(granted)]])
        used, priority = slot[slot != MISS], self.priority.numpy()
        priority[used] = self.eviction.priority(priority[used], clock)
        found = slot[place]
        collided = np.count_nonzero((found == MISS) & (code != UNKNOWN))
        counters = self.counters.numpy()
        counters += [len(free) - len(expired), len(evicted) + len(expired), len(new) - len(granted), collided]
        return found, np.concatenate([expired, evicted])

    def statistics(self) -> dict[str, float]:
        """Occupancy (share of slots in use); ids evicted, ids refused and lookups collided since the start."""
        occupied, evicted, refused, collisions = self.counters.tolist()
        return {
            "occupancy": occupied / (self.capacity - 1),
            "evicted": evicted,
            "refused": refused,
            "collisions": collisions,
        }

    def _advance(self, time: int) -> Clock:
        step, before = self.clock.tolist()
        self.clock.numpy()[:] = clock = Clock(step=step + 1, time=max(before, time))
        return clock

    def _expire(self, clock: Clock) -> np.ndarray:
        floor = self.eviction.floor(clock)
        if floor == NOTHING:
            return np.zeros(0, dtype=np.int64)
        expired = np.flatnonzero((self.priority.numpy() < floor) & (self.code.numpy() != UNKNOWN))
        self._hand_over(expired, np.full(len(expired), UNKNOWN))
        return expired

    def _free(self, count: int) -> np.ndarray:
        """The first ``count`` slots that belong to no code, or all of them if there are fewer."""
        if count == 0 or len(self._sorted_code) == self.capacity - 1:
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero(self.code.numpy()[1:] == UNKNOWN)[:count] + 1

    def _lowest(self, count: int, *, spared: np.ndarray) -> np.ndarray:
        """At most ``count`` slots of lowest priority, none of them in ``spared``; of equal ones the first."""
        if count <= 0:
            return np.zeros(0, dtype=np.int64)
        priority = self.priority.numpy().copy()
        priority[MISS] = np.inf
        priority[spared] = np.inf
        last = min(count, self.capacity) - 1
        # Only what is as low as the last one is sorted: to sort a whole table takes many times longer.
        few = np.flatnonzero(priority <= np.partition(priority, last)[last])
        few = few[np.argsort(priority[few], kind="stable")][:count]
        return few[priority[few] < np.inf]

    def _hand_over(self, slot: np.ndarray, code: np.ndarray) -> None:
        """Give each slot to its code, which are ascending, or to nobody if they are :data:`UNKNOWN`."""
        if len(slot) == 0:
            return
        before = self.code.numpy()[slot]
        self.code.numpy()[slot] = code
        self.priority.numpy()[slot] = NOTHING
        kept = np.full(len(self._sorted_code), True)
        kept[self._sorted_code.searchsorted(before[before != UNKNOWN])] = False
        self._sorted_code, self._sorted_slot = self._sorted_code[kept], self._sorted_slot[kept]
        slot, code = slot[code != UNKNOWN], code[code != UNKNOWN]
        place = self._sorted_code.searchsorted(code)
        self._sorted_code = np.insert(self._sorted_code, place, code)
        self._sorted_slot = np.insert(self._sorted_slot, place, slot)

    def _find(self, code: np.ndarray) -> np.ndarray:
        """Slots of ``code``, which is ascending: the search runs twice as fast in order."""
        if len(self._sorted_code) == 0:
            return np.full(len(code), MISS, dtype=np.int64)
        place = self._sorted_code.searchsorted(code).clip(max=len(self._sorted_code) - 1)
        return np.where(self._sorted_code[place] == code, self._sorted_slot[place], MISS)

    def _index(self) -> None:
        code = self.code.numpy()
        used = np.flatnonzero(code != UNKNOWN)
        order = np.argsort(code[used], kind="stable")
        self._sorted_code = code[used][order]
        self._sorted_slot = used[order]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._index()
