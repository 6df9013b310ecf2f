"""Label rates as of the windows before: how often the label was 1 for an item, a user, a user and a category, ...

What is learned of one window is seen from the next on (law L5). Shape legend: C candidates, K keys, N distinct values.
"""

from collections.abc import Mapping

import numpy as np

from streaming.catalogue import Catalogue
from streaming.requests import Requests

_ODD = np.uint64(0x9E3779B97F4A7C15)


def key_names(attributes: list[str]) -> list[str]:
    """Names of the K keys that label rates are kept by, where items have these attributes."""
    keys = ["item", "user", "item_surface", "user_surface", "user_item"]
    return [*keys, *attributes, *(f"user_{name}" for name in attributes)]


def keys_of(requests: Requests, items: Catalogue) -> np.ndarray:
    """Codes of every candidate's keys, int64 ``[C, K]``, in the order of :func:`key_names`."""
    item_C, user_C, surface_C = requests.item_id, requests.user_id[requests.owner], requests.surface
    attributes = list(items.code[requests.item, 1:].T)
    pairs = [(item_C,), (user_C,), (item_C, surface_C), (user_C, surface_C), (user_C, item_C)]
    pairs += [*((code,) for code in attributes), *((user_C, code) for code in attributes)]
    return np.stack([pair_code(*parts) for parts in pairs], axis=1)


def pair_code(*parts: np.ndarray) -> np.ndarray:
    """One code of several, int64 ``[C]``: a hash by SplitMix64 steps (Steele et al., 2014), so order matters."""
    with np.errstate(over="ignore"):
        mixed = np.zeros(len(parts[0]), dtype=np.uint64)
        for part in parts:
            mixed = (mixed ^ part.astype(np.int64).view(np.uint64)) + _ODD
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed ^= mixed >> np.uint64(31)
    return mixed.view(np.int64)


class LabelRates:
    """Decayed counts of labels by the values of K keys.

    Args:
        keys: K.
        decay: what every count is multiplied by once a window, in (0, 1].
        strength: labels that the prior stands for in a rate.
    """

    def __init__(self, *, keys: int, decay: float, strength: float) -> None:
        self.keys = keys
        self.decay = decay
        self.strength = strength
        self.prior = 0.5
        self._total = np.zeros(2)
        self._value = [np.empty(0, dtype=np.int64) for _ in range(keys)]
        self._count = [np.zeros((0, 2)) for _ in range(keys)]

    def learn(self, key_CK: np.ndarray, label_C: np.ndarray) -> None:
        """Take in the labels that became known in one window, after all that was learned before has decayed."""
        seen_C2 = np.stack([np.ones(len(label_C)), label_C.astype(np.float64)], axis=1)
        self._total = self._total * self.decay + seen_C2.sum(axis=0)
        if self._total[0] > 0:
            self.prior = float((self._total[1] + 1) / (self._total[0] + 2))
        for k in range(key_CK.shape[1]):
            value = np.concatenate([self._value[k], key_CK[:, k]])
            count = np.concatenate([self._count[k] * self.decay, seen_C2])
            # A stable sort finds the old values in order already.
            order = np.argsort(value, kind="stable")
            value = value[order]
            first = np.flatnonzero(np.concatenate([np.ones(min(len(value), 1), bool), value[1:] != value[:-1]]))
            self._value[k] = value[first]
            self._count[k] = np.add.reduceat(count[order], first, axis=0) if len(first) else np.zeros((0, 2))

    def at(self, key_CK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each value its rate, shrunk to that of everything, and ``log1p`` of its count: float32 ``[C, K]``."""
        rate_CK = np.full(key_CK.shape, self.prior, dtype=np.float32)
        count_CK = np.zeros(key_CK.shape, dtype=np.float32)
        for k, (value, count) in enumerate(zip(self._value, self._count, strict=True)):
            if not len(value):
                continue
            row = np.searchsorted(value, key_CK[:, k]).clip(max=len(value) - 1)
            found = np.where((value[row] == key_CK[:, k])[:, None], count[row], 0.0)
            rate_CK[:, k] = (found[:, 1] + self.strength * self.prior) / (found[:, 0] + self.strength)
            count_CK[:, k] = np.log1p(found[:, 0])
        return rate_CK, count_CK

    def state_dict(self) -> dict[str, np.ndarray]:
        """All that was counted: ``total`` float64 ``[2]`` and ``prior`` float64 ``[]``; of key ``k`` the values seen,
        ascending, ``k.value`` int64 ``[N]``, and of each how often it was seen and how often with a label of 1,
        ``k.count`` float64 ``[N, 2]``. Shares memory.
        """
        state = {"total": self._total, "prior": np.array(self.prior)}
        for k, (value, count) in enumerate(zip(self._value, self._count, strict=True)):
            state |= {f"{k}.value": value, f"{k}.count": count}
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self._total, self.prior = state["total"], float(state["prior"])
        self._value = [state[f"{k}.value"] for k in range(self.keys)]
        self._count = [state[f"{k}.count"] for k in range(self.keys)]
