"""Every task's policy together: which heads a model has, and which columns of supervision teach them.

Shape legend: C candidates, T tasks, H heads, K columns of supervision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from streaming.errors import ConfigError
from streaming.labels.attribution import NEVER, Int, closed
from streaming.labels.policy import Head, LabelPolicy, Wait
from streaming.requests import Requests, Supervision
from streaming.schema import TaskConfig

BOTH = 0.5
"""The label of a candidate that is a negative and a positive example at once."""


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """What is trained on when.

    Attributes:
        tasks: as in the data set, in its order.
        policies: one a task.
        heads: H logits of the model; the heads of a task stand side by side.
    """

    tasks: tuple[TaskConfig, ...]
    policies: tuple[LabelPolicy, ...]
    heads: tuple[Head, ...]

    @staticmethod
    def of(tasks: Sequence[TaskConfig], policies: Mapping[str, LabelPolicy] | None = None) -> "LabelPlan":
        """The plan for ``tasks``; those that ``policies`` does not name wait for their labels.

        Raises:
            ConfigError: a policy names no task, does not fit its task, or two heads have one name.
        """
        chosen = dict(policies or {})
        names = [task.name for task in tasks]
        if unknown := sorted(chosen.keys() - set(names)):
            raise ConfigError(f"labels: there is no task {', '.join(unknown)}; allowed are {', '.join(names)}.")
        ordered = tuple(chosen.get(name, Wait()) for name in names)
        heads = tuple(head for task, policy in zip(tasks, ordered, strict=True) for head in policy.heads(task))
        seen = [head.name for head in heads]
        if repeated := sorted({name for name in seen if seen.count(name) > 1}):
            raise ConfigError(f"labels: two heads are called {', '.join(repeated)}. Rename the task that is.")
        return LabelPlan(tasks=tuple(tasks), policies=ordered, heads=heads)

    @property
    def head_names(self) -> list[str]:
        """Names of the H heads, which all differ."""
        return [head.name for head in self.heads]

    def columns(self, supervision: Supervision, *, time_C: Int) -> Supervision:
        """K columns in place of the T stored ones; a head of fake negatives has two, the negatives' first.

        What is known before some time depends on nothing that happened from then on (law L2).
        """
        columns = []
        for index, (task, policy) in enumerate(zip(self.tasks, self.policies, strict=True)):
            label_C, known_C = closed(
                task, time_C=time_C, label_C=supervision.label[:, index], known_C=supervision.known_time[:, index]
            )
            columns += policy.columns(task, time_C=time_C, label_C=label_C, known_C=known_C)
        return replace(
            supervision,
            label=np.stack([label_C for label_C, _ in columns], axis=1),
            known_time=np.stack([known_C for _, known_C in columns], axis=1),
        )

    def taught(self, supervision: Supervision, *, time_C: Int, since: int, before: int) -> Supervision:
        """What the H heads are taught in ``[since, before)``: labels ``[C, H]``, not known outside of it.

        A label is 0 or 1, or :data:`BOTH` where a fake negative and its positive come in the same interval.

        Args:
            supervision: as stored, ``[C, T]``.
            time_C: int64 microseconds of each candidate's request.
        """
        stored = self.columns(supervision, time_C=time_C)
        known_CK, column = stored.known(since=since, before=before), 0
        time_CK = np.where(known_CK, stored.known_time, NEVER)
        labels, times = [], []
        for head in self.heads:
            label_C, known_C = stored.label[:, column], time_CK[:, column]
            if head.fake_negatives:
                positive_C = known_CK[:, column + 1]
                label_C = np.where(positive_C, np.where(known_CK[:, column], BOTH, 1), 0).astype(label_C.dtype)
                known_C = np.where(positive_C, time_CK[:, column + 1], known_C)
            labels.append(label_C)
            times.append(known_C)
            column += 2 if head.fake_negatives else 1
        return replace(stored, label=np.stack(labels, axis=1), known_time=np.stack(times, axis=1))

    def told(self, requests: Requests, *, since: int, before: int) -> Requests:
        """The requests with what the H heads are taught of them in ``[since, before)`` in place of what is stored."""
        time_C = requests.time[requests.owner]
        taught = self.taught(requests.supervision, time_C=time_C, since=since, before=before)
        return replace(requests, supervision=taught)
