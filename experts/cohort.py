"""C2AL: auxiliary tasks from the cohorts whose labels contrast most (arXiv 2510.02215).

A model trained on one objective follows its largest cohorts. So two cohorts are sought that differ in one attribute
and most in how often a label is 1, and each becomes a binary task of its own::

    label of the cohort's task = label of the task, where the candidate is in the cohort; 0 elsewhere

known wherever the task's label is known. One row is thus a positive of the task and of one cohort and a negative of
the other: the tasks conflict in part, which is what keeps features of the smaller cohort alive in what they share.
They are read from the backbone by heads that exist in training only, and cost nothing in serving. A head begins at the
rate that its task had when it was found: else the backbone would first have to say how rare it is, at the cost of all.

Cohorts are found once, from windows that are already past, and then kept: a head whose meaning changed would have to
forget. Which two are paired, the support that each side needs and the bound on their contrast are ours; the paper's
summaries that we have say "strongest contrast" only.

Shape legend: C candidates, T tasks, K cohorts (two a pair).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pydantic
import torch
from torch import Tensor

from experts.cohort_counts import CohortCounts, candidate_codes, user_groups
from experts.contrast import contrasts
from foundation.hstu.loss import masked_log_loss
from streaming.batch import RequestBatch
from streaming.catalogue import encode
from streaming.config import Config as BaseConfig
from streaming.errors import LeakageError


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The candidates with one value of one attribute.

    Attributes:
        attribute: ``item.NAME``, ``user.NAME`` or ``context.NAME``.
        code: of the value, see :mod:`streaming.catalogue`.
        rows, rate: when it was found: candidates with a known label, and how many of them were positive.
        share: positives of the cohort among all candidates of which label and attribute were known.
    """

    attribute: str
    code: int
    rows: int
    rate: float
    share: float

    def name(self, values: Mapping[int, str]) -> str:
        """``user.income=50-74K``; ``values`` is of :func:`value_names`. The code stands for a value not named there."""
        return f"{self.attribute}={values.get(self.code, self.code)}"


@dataclass(frozen=True, kw_only=True)
class CohortPair:
    """Two cohorts of one attribute that contrast in one task.

    Attributes:
        task: index of the task.
        minority, majority: the cohort with fewer rows, and that with more.
        effect: Cohen's h between their rates; ``bound``: what it exceeds with the configured confidence.
    """

    task: int
    minority: Cohort
    majority: Cohort
    effect: float
    bound: float


@dataclass(frozen=True, kw_only=True)
class CohortLabels:
    """Labels of the auxiliary tasks: minority and majority of each pair in turn.

    Attributes:
        label_CK: float32, 0 where unknown.
        known_CK: bool; nothing is known where there is no pair.
        start_K: float32, logit of each task's rate when it was found, which its head begins at.
    """

    label_CK: Tensor
    known_CK: Tensor
    start_K: Tensor

    def loss(self, logit_CK: Tensor) -> Tensor:
        """Scalar: log loss summed over the auxiliary tasks, a candidate."""
        return masked_log_loss(logit_CK + self.start_K, self.label_CK, self.known_CK)


class CohortTasks:
    """Finds cohort pairs in past windows, and labels candidates for them afterwards.

    Order of a window: :meth:`labels` for training on it; :meth:`observe` its batches; :meth:`close` it.
    """

    class Config(BaseConfig):
        """Attributes:

        pairs: the largest number of pairs; no two of one task are of one attribute.
        kinds: of attributes that cohorts may be of.
        windows: with labels, to be seen before pairs are chosen.
        least_rows, least_positives: of either cohort; as many negatives as positives.
        least_effect: Cohen's h that a contrast must exceed with ``confidence``, all comparisons allowed for.
        max_values: an attribute with more values divides too finely.
        weight: of the auxiliary loss.
        """

        pairs: int = pydantic.Field(default=2, ge=1)
        kinds: list[Literal["user", "item", "context"]] = pydantic.Field(default=["user", "item"], min_length=1)
        windows: int = pydantic.Field(default=4, ge=1)
        least_rows: int = pydantic.Field(default=500, ge=1)
        least_positives: int = pydantic.Field(default=30, ge=1)
        least_effect: float = pydantic.Field(default=0.05, ge=0.0)
        confidence: float = pydantic.Field(default=0.95, gt=0.0, lt=1.0)
        max_values: int = pydantic.Field(default=512, ge=2)
        weight: float = pydantic.Field(default=0.1, gt=0)

        @property
        def outputs(self) -> int:
            """K, how many auxiliary heads there are room for; those of pairs not found are never trained."""
            return 2 * self.pairs

        def build(self, *, tasks: int) -> "CohortTasks":
            return CohortTasks(config=self, tasks=tasks)

    def __init__(self, *, config: Config, tasks: int) -> None:
        self.config = config
        self.counts = CohortCounts(tasks=tasks, max_values=config.max_values)
        self.pairs: list[CohortPair] = []
        self._closed: int | None = None  # the last window that was closed
        self._open: int | None = None
        self._seen = 0

    @property
    def chosen(self) -> bool:
        """Whether pairs have been looked for; there may be none that contrast enough."""
        return self._seen >= self.config.windows

    def observe(self, batch: RequestBatch, *, window: int) -> None:
        """Count the labels of ``batch`` that became known in ``window``; once pairs are chosen there is no need.

        Raises:
            LeakageError: ``window`` was closed already, or another one is open (law L5).
        """
        self._require_open(window)
        self._open = window
        if not self.chosen:
            labels, codes = batch.labels, candidate_codes(batch)
            allowed = {name: code for name, code in codes.items() if name.split(".")[0] in self.config.kinds}
            self.counts.add(allowed, user_groups(batch), labels.label_CT, labels.known_CT)

    def close(self, window: int) -> list[CohortPair]:
        """End the window; after enough of them, choose pairs. Returns the pairs that serve from the next window on."""
        if self._open == window and not self.chosen:
            self._seen += 1
            if self.chosen:
                self.pairs = choose(self.counts, self.config)
        self._closed, self._open = window, None
        return self.pairs

    def labels(self, batch: RequestBatch, *, window: int) -> CohortLabels:
        """For losses only, in training on what became known in ``window``.

        Raises:
            LeakageError: as :meth:`observe`.
        """
        self._require_open(window)
        given = batch.labels
        label_CK = torch.zeros(len(given.label_CT), self.config.outputs)
        known_CK = torch.zeros(label_CK.shape, dtype=torch.bool)
        start_K = torch.zeros(self.config.outputs)
        codes = candidate_codes(batch) if self.pairs else {}
        for index, pair in enumerate(self.pairs):
            for side, cohort in enumerate((pair.minority, pair.majority)):
                label_CK[:, 2 * index + side] = given.label_CT[:, pair.task] * members(cohort, codes)
                known_CK[:, 2 * index + side] = given.known_CT[:, pair.task]
                start_K[2 * index + side] = math.log(cohort.share / (1.0 - cohort.share))
        return CohortLabels(label_CK=label_CK, known_CK=known_CK, start_K=start_K)

    def _require_open(self, window: int) -> None:
        if (self._closed is not None and window <= self._closed) or self._open not in (None, window):
            raise LeakageError(
                f"cohorts: window {window} was asked for while window {self._open} is open and {self._closed} was the "
                "last closed. Take windows in order, and close each before the next."
            )

    def state_dict(self) -> dict[str, Any]:
        """Counts as tensors, everything else as JSON values."""
        return {
            "counts": self.counts.state_dict(),
            "pairs": [asdict(pair) for pair in self.pairs],
            "closed": self._closed,
            "open": self._open,
            "seen": self._seen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.counts.load_state_dict(state["counts"])
        self.pairs = [
            CohortPair(**{**pair, **{side: Cohort(**pair[side]) for side in ("minority", "majority")}})
            for pair in state["pairs"]
        ]
        self._closed, self._open, self._seen = state["closed"], state["open"], state["seen"]


def choose(counts: CohortCounts, config: CohortTasks.Config) -> list[CohortPair]:
    """The pairs of strongest contrast by its bound, best first, one a task and attribute. Deterministic."""
    found = []
    for name in sorted(counts.sums):
        for task in range(counts.tasks):
            support = {"least_rows": config.least_rows, "least_positives": config.least_positives}
            found += [(name, task, each) for each in contrasts(counts.sums[name][:, :, task], **support)]
    pairs = []
    for name, task, contrast in found:
        bound = contrast.bound(config.confidence, len(found))
        if bound > config.least_effect:
            sides = [_cohort(counts, name, value, task) for value in (contrast.low, contrast.high)]
            minority, majority = sorted(sides, key=lambda cohort: cohort.rows)
            pair = CohortPair(task=task, minority=minority, majority=majority, effect=contrast.effect, bound=bound)
            pairs.append(pair)
    pairs.sort(key=lambda pair: -pair.bound)
    chosen: dict[tuple[int, str], CohortPair] = {}
    for pair in pairs:
        chosen.setdefault((pair.task, pair.minority.attribute), pair)
    return list(chosen.values())[: config.pairs]


def value_names(table: pa.Table, attributes: list[str]) -> dict[int, str]:
    """The values behind codes, for :meth:`Cohort.name`: of columns of items, users or requests as they are stored."""
    names: dict[int, str] = {}
    for attribute in attributes:
        distinct = table[attribute].combine_chunks().unique().drop_null()
        names |= dict(zip(encode(distinct).tolist(), map(str, distinct.to_pylist()), strict=True))
    return names


def _cohort(counts: CohortCounts, name: str, value: int, task: int) -> Cohort:
    rows, positives = counts.sums[name][value, :, task].sum(axis=0)
    share = positives / counts.sums[name][:, :, task, 0].sum()
    code = int(counts.values[name][value])
    return Cohort(attribute=name, code=code, rows=int(rows), rate=float(positives / rows), share=float(share))


def members(cohort: Cohort, codes: Mapping[str, Tensor]) -> Tensor:
    """Which candidates are in the cohort, bool ``[C]``; ``codes`` as :func:`candidate_codes` gives them."""
    return codes[cohort.attribute] == cohort.code
