"""One row of numbers a candidate: what a practitioner would give to boosted trees, as of the request.

============== =======================================================================================================
dense          the data set's own as-of features
user_events,   the user's engagements before the request (``log1p``) and days since the last (-1: none), strictly
user_days      earlier ones only (law L1); both again for those on the candidate's own surface
categories     surface, item and user attributes, context; numbered as they first appear, unknown is not a number; or
               the surface alone
rate, count    label rates by item, user, attribute, and user with each of these: of the windows before (law L5)
teacher_logit  if there is a teacher: what it said before it learned the window, :mod:`transfer.reference.teacher_logit`
============== =======================================================================================================

Nothing is read of a request's other candidates (law L6). Shape legend: C candidates, F features, K keys of rates.
"""

import numpy as np

from streaming.catalogue import UNKNOWN
from streaming.dataset import Window
from streaming.history import EngagementLog
from streaming.labels.plan import LabelPlan
from streaming.labels.rates import LabelRates, key_names, keys_of
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer.reference.teacher_logit import TeacherLogit

DAY = 86_400_000_000  # microseconds
_ALL = np.iinfo(np.int32).max


class Numbering:
    """Numbers from 0 for codes, in the order in which they appear: later codes never change earlier numbers."""

    def __init__(self) -> None:
        self._code = np.empty(0, dtype=np.int64)
        self._number = np.empty(0, dtype=np.int64)

    def __call__(self, code: np.ndarray) -> np.ndarray:
        """float32 ``[C]`` of int64 codes ``[C]``, nan for :data:`streaming.catalogue.UNKNOWN`."""
        new = np.setdiff1d(code, self._code)
        numbers = np.arange(len(self._code), len(self._code) + len(new))
        order = np.argsort(np.concatenate([self._code, new]), kind="stable")
        self._number = np.concatenate([self._number, numbers])[order]
        self._code = np.concatenate([self._code, new])[order]
        number = self._number[np.searchsorted(self._code, code)].astype(np.float32)
        return np.where(code == UNKNOWN, np.float32(np.nan), number)


class TabularFeatures:
    """Features of whole windows, to be asked for in the order of time.

    Args:
        workspace: the data set.
        task: index of the task whose labels the rates are of.
        decay: see :class:`streaming.labels.rates.LabelRates`.
        strength: likewise.
        categories: whether attributes and context are read, beside the surface.
        teacher: what reads the teacher's logit; None for no teacher.

    Attributes:
        names: of the F features; categorical: names of those that are categories.
    """

    def __init__(
        self,
        *,
        workspace: Workspace,
        task: int,
        decay: float,
        strength: float,
        categories: bool = True,
        teacher: TeacherLogit | None = None,
    ) -> None:
        inputs = workspace.inputs
        self._task = task
        attributes = inputs.item_features[1:]
        self.categorical = ["surface"]
        if categories:
            self.categorical += [*attributes, *inputs.user_features[1:], *inputs.context]
        keys = key_names(attributes)
        # Names may repeat between kinds of features; those of the model must not.
        self.names = [f"dense {name}" for name in inputs.dense]
        self.names += ["user_events", "user_days", "user_surface_events", "user_surface_days"]
        self.categorical = [f"category {index} {name}" for index, name in enumerate(self.categorical)]
        self.names += self.categorical
        self.names += [f"rate {name}" for name in keys] + [f"count {name}" for name in keys]
        self.names += ["teacher_logit"] if teacher is not None else []
        self._teacher = teacher
        self._workspace = workspace
        self._plan = LabelPlan.of(workspace.dataset.config.tasks)
        self._logs = [workspace.engagements.only(index) for index in range(len(inputs.surfaces))]
        self._numbering = [Numbering() for _ in self.categorical]
        self._rates = LabelRates(keys=len(keys), decay=decay, strength=strength)

    @property
    def prior(self) -> float:
        """Rate of all labels learned so far; 0.5 before any."""
        return self._rates.prior

    def of(self, requests: Requests) -> np.ndarray:
        """float32 ``[C, F]``: what was known just before the requests, label rates as of the last :meth:`learn`."""
        columns = [requests.dense, self._activity(requests), self._categories(requests)]
        columns += self._rates.at(keys_of(requests, self._workspace.items))
        columns += [self._teacher.of(requests)] if self._teacher is not None else []
        return np.ascontiguousarray(np.concatenate(columns, axis=1), dtype=np.float32)

    def learn(self, window: Window) -> None:
        """Let rates take in what became known in ``window``, of its own requests and of earlier ones (law L2)."""
        keys, labels = [np.zeros((0, self._rates.keys), dtype=np.int64)], [np.zeros(0)]
        for made in self._workspace.dataset.teaching(window):
            # Whatever training does until a label is known, rates count labels.
            stored = self._workspace.requests(made.index)
            requests = self._plan.told(stored, since=window.start, before=window.end).learned_in(window)
            known = requests.supervision.known(since=window.start, before=window.end)[:, self._task]
            keys.append(keys_of(requests, self._workspace.items)[known])
            labels.append(requests.supervision.label[known, self._task])
        self._rates.learn(np.concatenate(keys), np.concatenate(labels))

    def _activity(self, requests: Requests) -> np.ndarray:
        surface_CS = np.stack([_activity(log, requests) for log in self._logs])
        own = surface_CS[requests.surface, requests.owner]
        return np.concatenate([_activity(self._workspace.engagements, requests)[requests.owner], own], axis=1)

    def _categories(self, requests: Requests) -> np.ndarray:
        owner = requests.owner
        code = [
            requests.surface[:, None] + 1,
            self._workspace.items.code[requests.item, 1:],
            self._workspace.users.code[requests.user[owner], 1:],
            requests.context[owner],
        ]
        columns = np.concatenate(code, axis=1).T[: len(self._numbering)]
        return np.stack([number(column) for number, column in zip(self._numbering, columns, strict=True)], axis=1)


def _activity(log: EngagementLog, requests: Requests) -> np.ndarray:
    """Number (``log1p``) and age in days of the last of each request's earlier engagements, float64 ``[R, 2]``."""
    start, end = log.spans(requests.user_id, requests.time, max_length=_ALL)
    last = np.append(log.time, 0)[np.where(end > start, end - 1, len(log.time))]
    days = np.where(end > start, (requests.time - last) / DAY, -1.0)
    return np.stack([np.log1p(end - start), days], axis=1)
