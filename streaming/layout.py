"""What it is worth to store and move the request and not the impression: rows, tokens and bytes of both layouts.

Request-level: user, context and attributes once a request, each engagement once in the log, candidates by themselves.
Impression-level: one row a candidate, with all that is the user's copied into it, history included. Bytes are those of
plain columns as they lie in memory, before any compression; labels and weights count on both sides.

Shape legend: R requests.
"""

from dataclasses import dataclass

import numpy as np

from streaming.requests import Requests
from streaming.workspace import Workspace

NUMBER = 8
"""Bytes of an id, a time, a code."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Counts over some windows of a data set.

    Attributes:
        requests, impressions: how many.
        tokens: events of all requests' histories.
        impression_tokens: the same if each impression has a history of its own.
        request_bytes, impression_bytes: of either layout.
    """

    requests: int = 0
    impressions: int = 0
    tokens: int = 0
    impression_tokens: int = 0
    request_bytes: int = 0
    impression_bytes: int = 0

    @property
    def dedup_ratio(self) -> float:
        """How many times the impression layout carries each event of a history; 1 where there are none."""
        return self.impression_tokens / self.tokens if self.tokens else 1.0

    @property
    def byte_ratio(self) -> float:
        """How many times as large the impression layout is; 1 where there is nothing."""
        return self.impression_bytes / self.request_bytes if self.request_bytes else 1.0


def layout(workspace: Workspace, *, history: int) -> Layout:
    """Both layouts of every window of a data set, with the latest ``history`` engagements strictly before a request."""
    log, users = workspace.engagements, workspace.users
    event = sum(column.itemsize for column in (log.item, log.surface, log.action, log.time))
    counts = np.zeros(4, dtype=np.int64)
    once = len(log.time) * event + log.users.nbytes + log.first.nbytes + len(users.ids) * NUMBER * len(users.features)
    copied = 0
    for window in workspace.dataset.windows:
        requests = workspace.requests(window.index)
        start, end = log.spans(requests.user_id, requests.time, max_length=history)
        length_R, candidates_R = end - start, np.diff(requests.offsets)
        counts += len(requests), len(requests.item), length_R.sum(), (length_R * candidates_R).sum()
        request, candidate = _row_bytes(requests)
        attributes = NUMBER * (len(users.features) - 1)
        once += len(requests) * request + len(requests.item) * candidate
        copied += len(requests.item) * (request + attributes + candidate)
    made, impressions, tokens, impression_tokens = counts.tolist()
    return Layout(
        requests=made,
        impressions=impressions,
        tokens=tokens,
        impression_tokens=impression_tokens,
        request_bytes=once,
        impression_bytes=copied + impression_tokens * event,
    )


def _row_bytes(requests: Requests) -> tuple[int, int]:
    """Bytes of a request without its candidates, and of a candidate with its supervision."""
    supervision = requests.supervision
    request = NUMBER * (3 + requests.context.shape[1]) + len(requests.tags)
    widths = (requests.dense.shape[1] * requests.dense.itemsize, supervision.label.shape[1] * (4 + NUMBER))
    candidate = 4 + NUMBER + 1 + sum(widths) + supervision.weight.itemsize + supervision.stratum.itemsize
    return request, candidate
