"""Join by ``(request_id, candidate_id)``, vectorised."""

import numpy as np

_SHIFT = 32
_BIAS = 1 << 31


class KeyIndex:
    """Sorted keys of a table, built once in O(N log N) and searched in O(log N) per key.

    Args:
        request_id: int64 [N].
        candidate_id: int32 [N]; pairs are unique.
    """

    def __init__(self, *, request_id: np.ndarray, candidate_id: np.ndarray) -> None:
        self._requests, group = np.unique(request_id, return_inverse=True)
        code = _encode(group, candidate_id)
        self._order = np.argsort(code, kind="stable")
        self._codes = code[self._order]

    def locate(self, *, request_id: np.ndarray, candidate_id: np.ndarray) -> np.ndarray:
        """Row int64 [C] of each key in the table, -1 where there is none."""
        if len(self._codes) == 0 or len(request_id) == 0:
            return np.full(len(request_id), -1, np.int64)
        candidate_id = candidate_id.astype(np.int64)
        group = np.minimum(np.searchsorted(self._requests, request_id), len(self._requests) - 1)
        known = (self._requests[group] == request_id) & (candidate_id >= -_BIAS) & (candidate_id < _BIAS)
        code = _encode(group, np.where(known, candidate_id, 0))
        found = np.minimum(np.searchsorted(self._codes, code), len(self._codes) - 1)
        known &= self._codes[found] == code
        return np.where(known, self._order[found], -1)

    def duplicate(self) -> int | None:
        """A row whose key another row has too, or None."""
        same = np.flatnonzero(self._codes[1:] == self._codes[:-1])
        return int(self._order[same[0] + 1]) if len(same) else None


def _encode(group: np.ndarray, candidate_id: np.ndarray) -> np.ndarray:
    """One int64 per pair, in the order of pairs: the request's rank above, the candidate (made non-negative) below."""
    return (group.astype(np.int64) << _SHIFT) + (candidate_id.astype(np.int64) + _BIAS)
