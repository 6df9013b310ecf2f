"""The cohorts of an expert's surfaces: which there are, what trains on them, which rows of predictions are in them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experts.cohort import Cohort, CohortLabels, CohortTasks, members, value_names
from experts.cohort_counts import candidate_codes
from streaming.batch import BatchReader, RequestBatch
from streaming.dataset import Window
from streaming.workspace import Workspace


class SurfaceCohorts:
    """Finds cohorts as windows pass, and then keeps them; see :class:`experts.cohort.CohortTasks`."""

    def __init__(self, *, config: CohortTasks.Config, workspace: Workspace, surfaces: Sequence[int]) -> None:
        """``surfaces``: their indices."""
        self.tasks = config.build(tasks=len(workspace.inputs.tasks))
        self.workspace = workspace
        self.surfaces = surfaces
        self.reader: BatchReader = workspace.reader({})
        self._names: dict[str, Cohort] = {}

    def labels(self, batch: RequestBatch, window: int) -> CohortLabels:
        """Of the auxiliary tasks, for training on what became known in ``window``."""
        return self.tasks.labels(batch, window=window)

    def finish(self, window: Window, *, size: int) -> None:
        """Count what became known in ``window``, ``size`` requests at a time, once everything has trained on it."""
        if not self.tasks.chosen:
            for _, learned in self.workspace.became_known_in(window):
                requests = learned.on_surface(*self.surfaces)
                for batch in self.reader.batches(requests, size=size, since=window.start, before=window.end):
                    self.tasks.observe(batch, window=window.index)
        self.tasks.close(window.index)

    def members(self, batch: RequestBatch) -> dict[str, Tensor]:
        """Which candidates are in each cohort, bool ``[C]``, by its name; empty before any was found."""
        named = self.named()
        codes = candidate_codes(batch) if named else {}
        return {name: members(cohort, codes) for name, cohort in named.items()}

    def named(self) -> dict[str, Cohort]:
        """The cohorts that were found, by names such as ``user.income=50-74K``, minorities first."""
        if self.tasks.pairs and not self._names:
            found = [getattr(pair, side) for side in ("minority", "majority") for pair in self.tasks.pairs]
            self._names = {cohort.name(self._values(cohort)): cohort for cohort in found}
        return self._names

    def _values(self, cohort: Cohort) -> Mapping[int, str]:
        kind, _, attribute = cohort.attribute.partition(".")
        tables = {"item": self.workspace.dataset.items, "user": self.workspace.dataset.users}
        return value_names(tables[kind](), [attribute]) if kind in tables else {}

    def state_dict(self) -> dict[str, Any]:
        return self.tasks.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tasks.load_state_dict(state)
        self._names = {}


def joined(parts: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """Members of consecutive batches, bool ``[N]`` by name."""
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in (parts[0] if parts else {})}
