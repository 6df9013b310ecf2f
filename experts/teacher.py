"""What an expert gets to read of its teacher: everything from the log, nothing from the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from experts.fusion import TeacherFeatures, Vectors
from experts.past import PastEmbeddings
from hypercast.errors import StoreError
from hypercast.pins import Pin, parse_snapshot_name
from hypercast.store.embeddings import Embeddings
from hypercast.store.tae_log import TaeLog
from streaming.batch import RequestBatch
from streaming.dataset import Dataset
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer.distill import Lesson

PAST = "past"
"""The representation that is not in the log but made of it."""
POOLED = "penultimate"
"""What it is made of."""
_HOUR = 3_600_000_000  # microseconds


@dataclass(frozen=True, kw_only=True)
class Told:
    """What was read for C candidates: ``features`` of all, and ``found``, how each was found."""

    features: TeacherFeatures
    found: Embeddings

    def noted(self, rows: np.ndarray) -> dict[str, float]:
        """Of those candidates, bool ``[C]``: the share that has each status, and how old what was found is.

        That is ``teacher/age_hours``, a mean from the snapshot's watermark to the request; absent where nothing was
        found. Nothing at all where there are no such candidates.
        """
        counts, asked = self.found.counts(rows), int(rows.sum())
        if not asked:
            return {}
        noted = {f"coverage/{status.lower()}": count / asked for status, count in counts.items()}
        age = self.found.age[rows & self.found.present]
        return noted | ({"teacher/age_hours": float(age.mean()) / _HOUR} if len(age) else {})


@dataclass(frozen=True, kw_only=True)
class TeacherLabels:
    """What is distilled from: ``logit_CT`` float32, and ``present_C`` float32, 1 where the log has a row."""

    logit_CT: Tensor
    present_C: Tensor

    @staticmethod
    def of(features: TeacherFeatures) -> "TeacherLabels":
        """Those that were logged with the vectors."""
        return TeacherLabels(logit_CT=features.logit_CT, present_C=features.present_C)

    def __getitem__(self, rows: slice) -> "TeacherLabels":
        """Those candidates' part."""
        return TeacherLabels(logit_CT=self.logit_CT[rows], present_C=self.present_C[rows])

    @staticmethod
    def joined(parts: Sequence["TeacherLabels"]) -> "TeacherLabels":
        """Of the candidates of all parts, one part after the other; at least one."""
        return TeacherLabels(
            logit_CT=torch.cat([part.logit_CT for part in parts]),
            present_C=torch.cat([part.present_C for part in parts]),
        )

    def lesson(self, batch: RequestBatch, *, weight_C: Tensor) -> Lesson:
        """What a step learns from the candidates, which ``batch`` is of."""
        return Lesson(
            label_CT=batch.labels.label_CT,
            known_CT=batch.labels.known_CT,
            teacher_CT=self.logit_CT,
            present_C=self.present_C,
            weight_C=weight_C,
        )


class TeacherReader:
    """Reads vectors and logits of a window's candidates as an expert's pin allows.

    Args:
        log: of the foundation model.
        pin: of the expert.
        workspace: the data set.
        widths: of the representations to read, by name.
        past: how ``past`` is pooled, if it is among them.
        delay: windows by which the teacher is kept from being fresh: what is read was published by a snapshot that had
            learned nothing of the ``delay`` windows before (at first, by the first snapshot). A pin to a version is a
            delay of its own, which this does not change.
        label_delay: the same of what is distilled from (:meth:`labels`), at least ``delay``; None for ``delay``.
    """

    def __init__(
        self,
        *,
        log: TaeLog,
        pin: Pin,
        workspace: Workspace,
        widths: Mapping[str, int],
        past: PastEmbeddings.Config,
        delay: int,
        label_delay: int | None = None,
    ) -> None:
        self.log = log
        self.pin = pin
        self.workspace = workspace
        self.widths = {name: width for name, width in widths.items() if name != PAST}
        self.delay = delay
        self.label_delay = delay if label_delay is None else label_delay
        self.past = None
        if PAST in widths:
            width = self.widths.setdefault(POOLED, widths[PAST])
            self.past = PastEmbeddings(
                config=past,
                workspace=workspace,
                width=width,
                read=lambda window, requests: self._read(window, requests, POOLED, delay=delay),
            )

    def read(self, window: int, requests: Requests) -> Told:
        """Vectors, logits and statuses of every candidate of ``requests``, which are of the window of that index.

        Raises:
            StoreError: the log has the window, but not as late as ``delay`` asks for; see also :meth:`TaeLog.read`.
        """
        read = {name: self._read(window, requests, name, delay=self.delay) for name in self.widths}
        first = next(iter(read.values()))
        present_C = torch.from_numpy(first.present.astype(np.float32))
        vectors = {
            name: Vectors(vector_CR=torch.from_numpy(each.vector), present_C=present_C) for name, each in read.items()
        }
        if self.past is not None:
            vectors[PAST] = self.past.of(window, requests)
        features = TeacherFeatures(vectors=vectors, logit_CT=torch.from_numpy(first.teacher_logit), present_C=present_C)
        return Told(features=features, found=first)

    def labels(self, window: int, requests: Requests, features: TeacherFeatures) -> TeacherLabels:
        """What is distilled from: the logits of a snapshot that is as old as ``label_delay`` asks for.

        Where that is no older than ``features``, which :meth:`read` has given, nothing is read again.

        Raises:
            StoreError: see :meth:`read`.
        """
        if self.label_delay == self.delay or self.pin.version is not None:
            return TeacherLabels.of(features)
        name = next(iter(self.widths))  # logits stand beside any
        read = self._read(window, requests, name, delay=self.label_delay)
        present_C = torch.from_numpy(read.present.astype(np.float32))
        return TeacherLabels(logit_CT=torch.from_numpy(read.teacher_logit), present_C=present_C)

    def _read(self, window: int, requests: Requests, representation: str, *, delay: int) -> Embeddings:
        return self.log.read(
            window=window,
            pin=self._delayed(window, delay),
            request_id=requests.request_id[requests.owner],
            candidate_id=requests.candidate_id,
            time=requests.time[requests.owner],
            width=self.widths[representation],
            tasks=self.workspace.inputs.tasks,
            representation=representation,
            requests_digest=self.workspace.dataset.requests_digest(window),
        )

    def _delayed(self, window: int, delay: int) -> Pin:
        """The pin to the newest snapshot that is as old as ``delay`` asks for, of those that published ``window``."""
        if not delay or self.pin.version is not None:
            return self.pin
        as_of = as_late_as(self.workspace.dataset, window, delay=delay)
        of_window = [
            segment
            for segment in self.log.segments()
            if segment.window == window and parse_snapshot_name(segment.snapshot)[0] == self.pin.lineage
        ]
        allowed = [parse_snapshot_name(one.snapshot)[1] for one in of_window if one.facts.watermark <= as_of]
        if of_window and not allowed:
            late = f"teacher_delay_windows: {self.delay}"
            if delay != self.delay:
                late += f" and label_delay_windows: {delay - self.delay}"
            raise StoreError(
                f"{self.log.root}: window {window} was published by {[one.snapshot for one in of_window]} only, all "
                f"newer than {late} allows. Publish it by an older snapshot too: "
                f"Publisher.publish_delayed(window, {delay})."
            )
        return replace(self.pin, version=max(allowed)) if allowed else self.pin


def as_late_as(dataset: Dataset, window: int, *, delay: int) -> int:
    """Largest watermark of a snapshot that has learned nothing of the ``delay`` windows before ``window``, in us.

    At first, there are fewer windows before: then of one that has learned nothing.
    """
    return dataset.window(max(window - delay, dataset.windows[0].index)).start
