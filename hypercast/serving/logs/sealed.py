"""What is settled of a window of what was served: which segments hold it, and who was answered without a vector.

::

    ROOT/sealed/window=00005.json     written last; from then on the window reads the same, whatever is logged later
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hypercast.errors import StoreError, told_of_the_disk
from hypercast.objects import record
from hypercast.store.keys import KeyIndex

FOLDER = "sealed"


@dataclass(frozen=True, kw_only=True)
class SealReport:
    """What came of sealing a window.

    Attributes:
        rows: candidates of the window's requests.
        served: of those, how many were served.
        vectors: of those, how many were given a vector.
        repeated: rows of a candidate that had been served before; left out.
        unknown: rows of requests that the data set has not, or has with another time, user, surface or item; left out.
        other_dense: served candidates of which a dense feature is not what the data set has, by more than one unit in
            the last place of float32.
        other_history: served candidates whose history is not what the data set has.
    """

    rows: int
    served: int = 0
    vectors: int = 0
    repeated: int = 0
    unknown: int = 0
    other_dense: int = 0
    other_history: int = 0


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """The record of a window.

    Attributes:
        requests_digest: SHA-256 of the request file that what was served was held against.
        segments: SHA-256 of the rows of each snapshot that answered, by its name.
        request_id, candidate_id: of candidates that were answered without a vector, as they come in the request log.
        report: of the sealing.
    """

    requests_digest: str
    segments: Mapping[str, str]
    request_id: list[int]
    candidate_id: list[int]
    report: SealReport

    @cached_property
    def without(self) -> KeyIndex:
        """Who was answered without a vector."""
        return KeyIndex(
            request_id=np.array(self.request_id, dtype=np.int64),
            candidate_id=np.array(self.candidate_id, dtype=np.int32),
        )

    def write(self, root: Path, window: int) -> None:
        """Make the window sealed.

        Raises:
            StoreError: the disk is full or read-only; the window is not sealed.
        """
        with told_of_the_disk(StoreError, root):
            record.write(_path(root, window), asdict(self))

    @staticmethod
    def read(root: Path, window: int) -> "Sealed | None":
        """The record of a window; None if it is not sealed.

        Raises:
            RegistryError: it is damaged.
        """
        path = _path(root, window)
        try:
            value = record.read(path, remedy="Restore it from a copy: what was learned of the window hangs on it.")
        except FileNotFoundError:
            return None
        return Sealed(**value | {"report": SealReport(**value["report"])})


def _path(root: Path, window: int) -> Path:
    return root / FOLDER / f"window={window:05d}.json"
