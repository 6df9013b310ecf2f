"""What the arms of an expert have said of a window, written down surface by surface before anything trains on it.

Shape legend: C candidates, H logits as trained, T tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foundation.hstu.delayed import DelayedHeads
from streaming.dataset import Window
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer import cohort, predictions
from transfer.gain import FM_HEAD
from transfer.predictions import Column, prediction_table


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Of one window.

    Attributes:
        requests: with C candidates.
        said: by arm and seed, probabilities as trained, float ``[C, H]``, in parts.
        teacher_CH: likewise, the foundation model's.
        cohorts: which candidates are in each cohort, bool ``[C]`` by its name.
    """

    requests: Requests
    said: Mapping[tuple[str, int], list[Tensor]]
    teacher_CH: Tensor
    cohorts: Mapping[str, np.ndarray]

    def write(self, run: Path, *, workspace: Workspace, window: Window, surfaces: Mapping[str, int]) -> None:
        """A table of every one of ``surfaces``, which are indices by name; without candidates, one without rows."""
        columns = self._columns(workspace, window)
        tasks = [task.name for task in workspace.plan.tasks]
        for surface, index in surfaces.items():
            rows = self.requests.surface == index
            own = {column: values[rows] for column, values in columns.items()}
            table = prediction_table(workspace.outcomes(self.requests.on_surface(index)), own, tasks=tasks)
            predictions.write(run, surface=surface, window=window.index, table=table)
            if self.cohorts:
                members = {name: values[rows] for name, values in self.cohorts.items()}
                cohort.write(run, surface=surface, window=window.index, members=members)

    def _columns(self, workspace: Workspace, window: Window) -> dict[Column, np.ndarray]:
        """Probabilities of every task, float32 ``[C]``."""
        heads, asked = DelayedHeads(workspace.plan), workspace.asked(self.requests, now=window.start)
        none = torch.zeros(0, len(workspace.inputs.tasks))
        read = {
            (arm, seed): heads.probability(torch.cat([none, *parts]), asked).numpy()
            for (arm, seed), parts in self.said.items()
        }
        teacher_CT = heads.probability(self.teacher_CH, asked).numpy()
        columns: dict[Column, np.ndarray] = {}
        for index, task in enumerate(workspace.plan.tasks):
            columns |= {Column(task.name, arm, seed): values[:, index] for (arm, seed), values in read.items()}
            columns[Column(task.name, FM_HEAD, 0)] = teacher_CT[:, index]
        return columns
