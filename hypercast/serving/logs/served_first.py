"""The log that experts learn from where they are to learn from what was served: that first, else what was published.

========================================  ==============================================================
a candidate that a service answered       what it was given then: vectors, logits, or nothing and no mask
any other                                 its row of the TAE log
========================================  ==============================================================

Of a window, what counts as answered is settled before anything predicts it, by sealing what is logged of it by then
(:mod:`hypercast.serving.logs.served_windows`); from then on it reads the same, also when late labels bring it back.

Shape legend: C candidates.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hypercast.errors import StoreError
from hypercast.pins import Pin
from hypercast.registry import Registry
from hypercast.serving.logs.served import IN_RUN
from hypercast.serving.logs.served_windows import ServedWindows
from hypercast.store.embeddings import Embeddings
from hypercast.store.status import Status
from hypercast.store.tae_log import TaeLog
from streaming.dataset import Window
from streaming.workspace import Workspace

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Learned(Embeddings):
    """``served_C``: bool, whose row is what a service gave; the others' are what was published."""

    served_C: np.ndarray

    def counts(self, rows: np.ndarray | slice = slice(None)) -> dict[str, int]:
        """By status name, as ever; and of those that have a vector, how many ``SERVED`` and how many ``PUBLISHED``."""
        by_source = {"SERVED": self.served_C & self.present, "PUBLISHED": ~self.served_C & self.present}
        return super().counts(rows) | {name: int(of_C[rows].sum()) for name, of_C in by_source.items()}


class ServedFirst(TaeLog):
    """See the module; to write to it is to publish.

    Args:
        root: of the TAE log.
        served: what a service has logged.
    """

    def __init__(self, root: Path | str, *, served: ServedWindows, config: TaeLog.Config | None = None) -> None:
        super().__init__(root, config=config)
        self.served = served

    @staticmethod
    def of_run(run: Path, *, config: TaeLog.Config) -> "ServedFirst":
        """That of a platform's run folder."""
        return ServedFirst(run / "tae_log", served=ServedWindows(run / IN_RUN, config=config), config=config)

    def settle(
        self, windows: Sequence[Window], *, workspace: Workspace, registry: Registry, predicted: Collection[int]
    ) -> None:
        """Seal those of ``windows`` that are not; nothing of them may have been predicted.

        Args:
            windows: that are over, and in the data set.
            predicted: indices of windows that experts have predicted.

        Raises:
            StoreError: one of them was predicted, and what it was predicted from is gone; see also
                :meth:`ServedWindows.seal`.
        """
        for window in windows:
            if self.served.sealed(window.index) is not None:
                continue
            if window.index in predicted:
                raise StoreError(
                    f"{self.served.root}: window {window.index} has been predicted, and what was served of it then is "
                    "not known any more. Restore the folder from a copy, or run anew: hypercast run PLATFORM.yaml "
                    "--run runs/second."
                )
            report = self.served.seal(window=window, workspace=workspace, registry=registry, published=self)
            _logger.info("window %d of what was served: %s", window.index, report)

    def read(
        self,
        *,
        window: int,
        pin: Pin,
        request_id: np.ndarray,
        candidate_id: np.ndarray,
        time: np.ndarray,
        width: int,
        tasks: Sequence[str],
        representation: str = "penultimate",
        requests_digest: str | None = None,
    ) -> Learned:
        """As :meth:`TaeLog.read`, with what was served in place of what was published.

        A pin to a version takes answers of that version alone, and reads what it published of the others.

        Raises:
            StoreError: the window is not settled.
        """
        published, given = (
            read(
                window=window,
                pin=pin,
                request_id=request_id,
                candidate_id=candidate_id,
                time=time,
                width=width,
                tasks=tasks,
                representation=representation,
                requests_digest=requests_digest,
            )
            for read in (super().read, self.served.read)
        )
        served_C = given.status != Status.MISS
        served_C |= self.served.without(window=window, request_id=request_id, candidate_id=candidate_id)
        chosen = given if served_C.all() else published
        if served_C.any() and chosen is published:
            chosen = Embeddings(
                vector=np.where(served_C[:, None], given.vector, published.vector),
                teacher_logit=np.where(served_C[:, None], given.teacher_logit, published.teacher_logit),
                status=np.where(served_C, given.status, published.status),
                age=np.where(served_C, given.age, published.age),
                snapshot=published.snapshot,
                aligned=False,
            )
        return Learned(**vars(chosen), served_C=served_C)
