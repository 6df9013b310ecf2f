"""The teacher's logit as a feature of other models: what a run's foundation model said before it learned a window."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hypercast.store.keys import KeyIndex
from streaming.dataset import Window
from streaming.errors import DataError
from streaming.requests import Requests
from transfer import predictions
from transfer.gain import FM_HEAD
from transfer.predictions import Column


class TeacherLogit:
    """Reads the arm ``fm_head`` of a run: each window as it was predicted whole, before its labels (law L4).

    Args:
        run: folder of a run over the same data set.
        task: whose logit.
        surfaces: of the data set.
        windows: of the data set; a request is of the one that its time is in.
    """

    def __init__(self, *, run: Path, task: str, surfaces: Sequence[str], windows: Sequence[Window]) -> None:
        self._run = run
        self._column = Column(task, FM_HEAD, 0).name
        self._surfaces = surfaces
        self._windows = windows

    def of(self, requests: Requests) -> np.ndarray:
        """float32 ``[C, 1]``; where the log had no row of the teacher's, what the arm says there.

        Raises:
            DataError: the run has not predicted these requests, or has no teacher.
        """
        start = np.array([window.start for window in self._windows])
        window_C = (np.searchsorted(start, requests.time, side="right") - 1)[requests.owner]
        logit_C = np.empty(len(requests.item), dtype=np.float32)
        for number in np.unique(window_C).tolist():
            for surface, name in enumerate(self._surfaces):
                rows = np.flatnonzero((window_C == number) & (requests.surface == surface))
                if len(rows):
                    logit_C[rows] = self._said(requests, rows, surface=name, window=self._windows[number].index)
        return logit_C[:, None]

    def _said(self, requests: Requests, rows: np.ndarray, *, surface: str, window: int) -> np.ndarray:
        columns = ["request_id", "candidate_id", self._column]
        path = predictions.path_of(self._run, surface, window)
        table = predictions.read(self._run, surface=surface, window=window, columns=columns)
        if self._column not in table.column_names:
            raise DataError(
                f"{path}: no column '{self._column}': there is no teacher's prediction of that task to read."
            )
        request_N, candidate_N, probability_N = (table[name].to_numpy() for name in columns)
        row_C = KeyIndex(request_id=request_N, candidate_id=candidate_N).locate(
            request_id=requests.request_id[requests.owner[rows]], candidate_id=requests.candidate_id[rows]
        )
        if (row_C < 0).any():
            raise DataError(f"{path}: not all candidates were predicted: the data set is not the one of the run.")
        return predictions.logit(probability_N[row_C])
