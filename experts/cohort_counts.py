"""Labels counted by value of every categorical attribute: what cohorts are found from.

Shape legend: C candidates, T tasks, V values of an attribute, G groups of users.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streaming.batch import RequestBatch
from streaming.catalogue import UNKNOWN

GROUPS = 64
"""Users fall into so many groups, by the code of their id: rows of one user are not independent, groups are."""


def candidate_codes(batch: RequestBatch) -> dict[str, Tensor]:
    """Codes of each candidate's attributes, int64 ``[C]``, by ``item.NAME``, ``user.NAME``, ``context.NAME``.

    The ids themselves are left out: a cohort is of many.
    """
    codes: dict[str, Tensor] = {}
    kinds = (("item", batch.items, batch.item_C, 1), ("user", batch.users, batch.owner_C, 1))
    for kind, keyed, row_C, ids in (*kinds, ("context", batch.context, batch.owner_C, 0)):
        names = keyed.keys()
        for name, code in list(zip(names, keyed.values().view(len(names), keyed.stride()), strict=True))[ids:]:
            codes[f"{kind}.{name}"] = code[row_C]
    return codes


def user_groups(batch: RequestBatch) -> Tensor:
    """Group of each candidate's user, int64 ``[C]``; the same in every window."""
    first = batch.users.values()[: batch.users.stride()]
    return (first % GROUPS)[batch.owner_C]


class CohortCounts:
    """Rows and positives by attribute, value, group of users and task, of all windows so far.

    An attribute with more than ``max_values`` values so far is too fine to divide anyone by, and is given up.

    Attributes:
        values: by attribute, sorted codes, int64 ``[V]``.
        sums: by attribute, float64 ``[V, G, T, 2]``: rows with a known label, and positives.
        given_up: attributes with too many values.
    """

    def __init__(self, *, tasks: int, max_values: int) -> None:
        self.tasks = tasks
        self.max_values = max_values
        self.values: dict[str, np.ndarray] = {}
        self.sums: dict[str, np.ndarray] = {}
        self.given_up: set[str] = set()

    def add(self, codes: Mapping[str, Tensor], group_C: Tensor, label_CT: Tensor, known_CT: Tensor) -> None:
        """Count rows; a candidate whose value is unknown counts for no cohort of that attribute."""
        known = known_CT.double().numpy()
        counted = np.stack([known, known * label_CT.double().numpy()], axis=2).reshape(len(known), -1)
        group = group_C.numpy()
        for name, code_C in codes.items():
            if name not in self.given_up:
                self._add(name, code_C.numpy(), group, counted)

    def _add(self, name: str, code_C: np.ndarray, group_C: np.ndarray, counted: np.ndarray) -> None:
        rows = np.flatnonzero(code_C != UNKNOWN)
        seen, rank = np.unique(code_C[rows], return_inverse=True)
        before = self.values.get(name, np.zeros(0, dtype=np.int64))
        values = np.union1d(before, seen)
        if len(values) > self.max_values:
            self.given_up.add(name)
            self.values.pop(name, None)
            self.sums.pop(name, None)
            return
        total = np.zeros((len(values), GROUPS, self.tasks, 2))
        total[np.searchsorted(values, before)] = self.sums.get(name, 0.0)
        cell = np.searchsorted(values, seen)[rank] * GROUPS + group_C[rows]
        for column, weight in enumerate(counted[rows].T):
            summed = np.bincount(cell, weights=weight, minlength=len(values) * GROUPS)
            total[:, :, column // 2, column % 2] += summed.reshape(len(values), GROUPS)
        self.values[name], self.sums[name] = values, total

    def state_dict(self) -> dict[str, Any]:
        """Tensors by attribute, and the names of those given up."""
        return {
            "values": {name: torch.from_numpy(each) for name, each in self.values.items()},
            "sums": {name: torch.from_numpy(each) for name, each in self.sums.items()},
            "given_up": sorted(self.given_up),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values = {name: each.numpy().copy() for name, each in state["values"].items()}
        self.sums = {name: each.numpy().copy() for name, each in state["sums"].items()}
        self.given_up = set(state["given_up"])
