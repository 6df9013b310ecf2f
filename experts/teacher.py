"""What an expert gets to read of its teacher: everything from the log, nothing from the model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from experts.fusion import TeacherFeatures, Vectors
from experts.past import PastEmbeddings
from hypercast.errors import StoreError
from hypercast.pins import Pin, parse_snapshot_name
from hypercast.store.embeddings import Embeddings
from hypercast.store.tae_log import TaeLog
from streaming.requests import Requests
from streaming.workspace import Workspace

PAST = "past"
"""The representation that is not in the log but made of it."""
POOLED = "penultimate"
"""What it is made of."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What was read for C candidates: ``features`` of all, and how many keys have which status, by name."""

    features: TeacherFeatures
    counts: Mapping[str, int]


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
    ) -> None:
        self.log = log
        self.pin = pin
        self.workspace = workspace
        self.widths = {name: width for name, width in widths.items() if name != PAST}
        self.delay = delay
        self.past = None
        if PAST in widths:
            width = self.widths.setdefault(POOLED, widths[PAST])
            self.past = PastEmbeddings(
                config=past,
                workspace=workspace,
                width=width,
                read=lambda window, requests: self._read(window, requests, POOLED),
            )

    def read(self, window: int, requests: Requests) -> Told:
        """Vectors, logits and statuses of every candidate of ``requests``, which are of the window of that index.

        Raises:
            StoreError: the log has the window, but not as late as ``delay`` asks for; see also :meth:`TaeLog.read`.
        """
        read = {name: self._read(window, requests, name) for name in self.widths}
        first = next(iter(read.values()))
        present_C = torch.from_numpy(first.present.astype(np.float32))
        vectors = {
            name: Vectors(vector_CR=torch.from_numpy(each.vector), present_C=present_C) for name, each in read.items()
        }
        if self.past is not None:
            vectors[PAST] = self.past.of(window, requests)
        features = TeacherFeatures(vectors=vectors, logit_CT=torch.from_numpy(first.teacher_logit), present_C=present_C)
        return Told(features=features, counts=first.counts())

    def _read(self, window: int, requests: Requests, representation: str) -> Embeddings:
        return self.log.read(
            window=window,
            pin=self._delayed(window),
            request_id=requests.request_id[requests.owner],
            candidate_id=requests.candidate_id,
            time=requests.time[requests.owner],
            width=self.widths[representation],
            tasks=self.workspace.inputs.tasks,
            representation=representation,
            requests_digest=self.workspace.dataset.requests_digest(window),
        )

    def _delayed(self, window: int) -> Pin:
        """The pin to the newest snapshot that is as old as ``delay`` asks for, of those that published ``window``."""
        if not self.delay or self.pin.version is not None:
            return self.pin
        dataset = self.workspace.dataset
        earliest = dataset.windows[0].index
        as_of = dataset.window(max(window - self.delay, earliest)).start
        of_window = [
            segment
            for segment in self.log.segments()
            if segment.window == window and parse_snapshot_name(segment.snapshot)[0] == self.pin.lineage
        ]
        allowed = [parse_snapshot_name(one.snapshot)[1] for one in of_window if one.facts.watermark <= as_of]
        if of_window and not allowed:
            raise StoreError(
                f"{self.log.root}: window {window} was published by {[one.snapshot for one in of_window]} only, all "
                f"newer than teacher_delay_windows: {self.delay} allows. Publish it by an older snapshot too: "
                "Publisher.publish(window, snapshot)."
            )
        return replace(self.pin, version=max(allowed)) if allowed else self.pin
