"""What was put and not yet committed: runs in memory and drafts of segments, oldest first."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from hypercast.store.engine import Layout
from hypercast.store.local import merge
from hypercast.store.local.run import Run, in_memory
from hypercast.store.local.segment import Draft

WHERE = "rows not committed"


class Delta(NamedTuple):
    """Rows of one snapshot; never changes: adding makes another one.

    Attributes:
        layout: of the rows.
        runs: oldest first, one at least.
    """

    layout: Layout
    runs: tuple[Run, ...]

    def add(self, run: Run) -> "Delta":
        """With one more run.

        Each run in memory is more than twice as long as the next: whatever breaks that is merged, so that many small
        puts leave few runs, and each row is merged a logarithmic number of times. Drafts stay as they are.
        """
        runs = [*self.runs, run]
        while (
            len(runs) > 1 and not is_draft(runs[-1]) and not is_draft(runs[-2]) and len(runs[-2]) <= 2 * len(runs[-1])
        ):
            newer, older = runs.pop(), runs.pop()
            runs.append(_merged(older, newer))
        return Delta(self.layout, tuple(runs))


def is_draft(run: Run) -> bool:
    """Written already, and only to be named."""
    return isinstance(run, Draft)


def pieces(runs: Sequence[Run]) -> list[list[Run]]:
    """What becomes one segment each: a draft alone, and what is in memory between two of them."""
    return [
        piece
        for drafts, group in groupby(runs, is_draft)
        for piece in ([[run] for run in group] if drafts else [list(group)])
    ]


def _merged(older: Run, newer: Run) -> Run:
    hashes, parts = zip(*merge.chunks([older, newer], prune=False), strict=True)
    return in_memory(where=WHERE, seal=newer.seal, hash_R=np.concatenate(hashes), record=np.concatenate(parts))
