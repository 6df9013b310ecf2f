"""What is asked of a service: candidates of one surface for one user, at one time."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

Value = str | int | float | bool | None
"""Of a context feature; None where it is not known."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One request as it comes.

    Attributes:
        request_id: of the caller, unique among what is asked.
        surface: name of the surface that shows the candidates.
        user_id: need not be known.
        time: microseconds UTC; only what lies strictly before it is seen (law L1).
        context: the value of every context feature of the data set.
        item_ids: int64 ``[C]``; they need not be known.
        dense: float32 ``[C]`` of every dense column that the caller must give (:attr:`FeatureState.given`), no others.
        candidate_ids: int64 ``[C]``, unique within the request; None counts from 0.
    """

    request_id: int
    surface: str
    user_id: int
    time: int
    context: Mapping[str, Value]
    item_ids: np.ndarray
    dense: Mapping[str, np.ndarray] = field(default_factory=dict)
    candidate_ids: np.ndarray | None = None
