"""What is read from the TAE log."""

from dataclasses import dataclass

import numpy as np

from hypercast.store import status as statuses
from hypercast.store.status import Status


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """What was read for C keys.

    Attributes:
        vector: float32 [C, D]; zeros where the status is EXPIRED or MISS. May be a read-only view of the file.
        teacher_logit: float32 [C, T], by task; zeros as above.
        status: uint8 [C], values of :class:`Status`.
        age: int64 [C], microseconds between the snapshot's watermark and the request; 0 where the status is MISS.
        snapshot: the snapshot that was read; None if there was no segment.
        aligned: whether the rows were read in sequence, without a join.
    """

    vector: np.ndarray
    teacher_logit: np.ndarray
    status: np.ndarray
    age: np.ndarray
    snapshot: str | None
    aligned: bool

    @staticmethod
    def missing(rows: int, *, width: int, tasks: int) -> "Embeddings":
        """C = ``rows`` keys of which none was found."""
        return Embeddings(
            vector=np.zeros((rows, width), np.float32),
            teacher_logit=np.zeros((rows, tasks), np.float32),
            status=np.full(rows, Status.MISS, np.uint8),
            age=np.zeros(rows, np.int64),
            snapshot=None,
            aligned=False,
        )

    @property
    def present(self) -> np.ndarray:
        """Bool [C]: where there is a vector; the mask bit that experts read beside it."""
        return self.status <= Status.STALE

    def counts(self, rows: np.ndarray | slice = slice(None)) -> dict[str, int]:
        """Number of keys by status name, of those ``rows`` (bool ``[C]``; all); all four names are always there."""
        return statuses.count(self.status[rows])
