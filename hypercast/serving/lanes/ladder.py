"""What a request's candidates are given of the foundation model, and where each one's vector came from.

===========  =============================================================================================
``LIVE``     computed for this very request, in time
``FRESH``    the candidate's own vector in the online store, young enough
``STALE``    the same, older, and not past its time to live
``NEAREST``  another user's vector of the item, of the one most like this one (``online.miss: nearest``)
``USER``     the mean of the user's vectors in the online store
``ZEROS``    nothing: the expert is told so by the mask bit, or answers without the foundation model at all
===========  =============================================================================================

Shape legend: C candidates, R width of a representation, T tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from experts.fusion import TeacherFeatures, Vectors
from hypercast.serving.models.foundation import Scored
from hypercast.store.ladder import Lookup, Rung
from hypercast.store.status import Status

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Given:
    """What C candidates are given.

    Attributes:
        vectors: float32 ``[C, R]`` by name of the representation; zeros on the rung ZEROS.
        logit_CT: float32, of the foundation model; zeros likewise.
        status_C: uint8, :class:`Status` of the candidate's own vector: by the age of the snapshot where it is computed
            live, as in the TAE log; by that of the vector where it is read.
        rung_C: uint8, :class:`Rung`.
        age_C: int64 microseconds, of what the status says.
        snapshot: that computed the vectors; None where there are none.
    """

    vectors: Mapping[str, Floats]
    logit_CT: Floats
    status_C: NDArray[np.uint8]
    rung_C: NDArray[np.uint8]
    age_C: NDArray[np.int64]
    snapshot: str | None

    @property
    def present_C(self) -> NDArray[np.bool_]:
        """Bool: the mask bit."""
        return self.rung_C != Rung.ZEROS

    def rungs(self) -> dict[str, int]:
        """Candidates by rung; all names are always there."""
        count = np.bincount(self.rung_C, minlength=len(Rung))
        return {rung.name: int(count[rung]) for rung in Rung}

    def statuses(self) -> dict[str, int]:
        """Candidates by status; all names are always there."""
        count = np.bincount(self.status_C, minlength=len(Status))
        return {status.name: int(count[status]) for status in Status}


def nothing(candidates: int, *, tasks: int) -> Given:
    """The lowest rung for all."""
    return Given(
        vectors={},
        logit_CT=np.zeros((candidates, tasks), np.float32),
        status_C=np.full(candidates, Status.MISS, np.uint8),
        rung_C=np.full(candidates, Rung.ZEROS, np.uint8),
        age_C=np.zeros(candidates, np.int64),
        snapshot=None,
    )


def computed(scored: Scored, part: slice) -> Given:
    """The highest rung for some of the candidates that were scored, unless the snapshot is too old to be of use."""
    return Given(
        vectors={name: vector_CR[part] for name, vector_CR in scored.vectors.items()},
        logit_CT=scored.logit_CT[part],
        status_C=scored.status[part],
        rung_C=np.where(scored.present[part], Rung.LIVE, Rung.ZEROS).astype(np.uint8),
        age_C=scored.age[part],
        snapshot=scored.snapshot,
    )


def read(lookup: Lookup, logit_CT: Floats, *, representation: str) -> Given:
    """What the online store answered; ``logit_CT`` are its vectors', whatever they are where there are none."""
    return Given(
        vectors={representation: lookup.vector},
        logit_CT=np.where(lookup.present[:, None], logit_CT, np.float32(0)),
        status_C=lookup.status,
        rung_C=lookup.rung,
        age_C=lookup.age,
        snapshot=lookup.snapshot if lookup.present.any() else None,
    )


def joined(given: Sequence[Given]) -> Given:
    """Several requests' in a row, whose vectors are of one snapshot and have the same names; at least one."""
    first = given[0]
    return Given(
        vectors={name: np.concatenate([each.vectors[name] for each in given]) for name in first.vectors},
        logit_CT=np.concatenate([each.logit_CT for each in given]),
        status_C=np.concatenate([each.status_C for each in given]),
        rung_C=np.concatenate([each.rung_C for each in given]),
        age_C=np.concatenate([each.age_C for each in given]),
        snapshot=first.snapshot,
    )


def features(given: Sequence[Given], *, widths: Mapping[str, int]) -> TeacherFeatures:
    """What an expert reads of several requests' candidates, in a row; ``widths`` of what it reads, by name."""
    present_C = torch.from_numpy(np.concatenate([each.present_C for each in given]).astype(np.float32))
    vectors = {
        name: torch.from_numpy(
            np.concatenate([each.vectors.get(name, _zeros(len(each.rung_C), width)) for each in given])
        )
        for name, width in widths.items()
    }
    return TeacherFeatures(
        vectors={name: Vectors(vector_CR=vector, present_C=present_C) for name, vector in vectors.items()},
        logit_CT=torch.from_numpy(np.concatenate([each.logit_CT for each in given])),
        present_C=present_C,
    )


def _zeros(candidates: int, width: int) -> Floats:
    return np.zeros((candidates, width), np.float32)
