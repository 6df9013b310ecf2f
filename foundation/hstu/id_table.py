"""Admission of unbounded ids to a bounded embedding table, with eviction of the least recently seen."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MISS = 0
"""The slot shared by unknown values and by codes that have no slot of their own."""


class IdTable(nn.Module):
    """Maps codes (63-bit hashes) to slots ``1 .. capacity - 1``; no two codes ever share one.

    Ids enter in training only, as they are first seen, so the mapping knows nothing of the future (law L5). When full,
    the slots unseen for longest make room; every embedding that looks up by them zeroes their rows and optimiser state.

    State is kept as buffers, so that snapshots and checkpoints carry the mapping beside the weights it belongs to.
    """

    code: Tensor
    last_seen: Tensor
    counters: Tensor

    def __init__(self, *, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.register_buffer("code", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("last_seen", torch.full((capacity,), -1, dtype=torch.int64))
        self.register_buffer("counters", torch.zeros(4, dtype=torch.int64))  # occupied, evicted, refused, step
        self._index()

    def lookup(self, code: np.ndarray) -> np.ndarray:
        """Slots of ``code``, int64; :data:`MISS` for codes never admitted, evicted, or unknown."""
        if len(self._sorted_code) == 0:
            return np.zeros(len(code), dtype=np.int64)
        position = np.searchsorted(self._sorted_code, code).clip(max=len(self._sorted_code) - 1)
        found = (self._sorted_code[position] == code) & (code != 0)
        return np.where(found, self._sorted_slot[position], MISS)

    def admit(self, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slots of ``code``, giving one to each new code; and the slots that were evicted to make room.

        Codes beyond what the whole table can hold stay at :data:`MISS` and are counted as refused.
        """
        self.counters[3] += 1
        step = int(self.counters[3])
        slot = self.lookup(code)
        last_seen = self.last_seen.numpy()
        last_seen[slot[slot != MISS]] = step
        new = np.unique(code[(slot == MISS) & (code != 0)])
        if len(new) == 0:
            return slot, np.zeros(0, dtype=np.int64)
        occupied = int(self.counters[0])
        fresh = np.arange(occupied + 1, min(occupied + 1 + len(new), self.capacity))
        evicted = self._least_recent(len(new) - len(fresh), step)
        granted = np.concatenate([fresh, evicted])
        self.code.numpy()[granted] = new[: len(granted)]
        last_seen[granted] = step
        self.counters += torch.tensor([len(fresh), len(evicted), len(new) - len(granted), 0])
        self._index()
        return self.lookup(code), evicted

    def statistics(self) -> dict[str, float]:
        """Occupancy (share of slots in use), and evicted and refused ids since the start."""
        occupied, evicted, refused, _ = self.counters.tolist()
        return {"occupancy": occupied / (self.capacity - 1), "evicted": evicted, "refused": refused}

    def _least_recent(self, count: int, step: int) -> np.ndarray:
        occupied = int(self.counters[0])
        if count <= 0 or occupied == 0:
            return np.zeros(0, dtype=np.int64)
        age = self.last_seen.numpy()[1 : occupied + 1]
        oldest = np.argsort(age, kind="stable")[:count]
        return oldest[age[oldest] < step] + 1

    def _index(self) -> None:
        occupied = int(self.counters[0])
        code = self.code.numpy()[1 : occupied + 1]
        order = np.argsort(code, kind="stable")
        self._sorted_code = code[order]
        self._sorted_slot = order + 1

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._index()
