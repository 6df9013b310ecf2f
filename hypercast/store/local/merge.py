"""Several runs become one, a piece of the hash's range at a time: memory does not grow with their length.

Only the column of hashes (8 bytes a row) is held at once. Damaged records are not carried on: merging stops there.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from hypercast.store.engine import Integers
from hypercast.store.local import records
from hypercast.store.local.records import COMPUTED_AT, KEY, WORD, Hashes
from hypercast.store.local.run import DamagedError, Run

# Of records in a piece, of all runs together: long enough for sequential reads, short for memory.
PIECE_BYTES = 4 << 20


def chunks(runs: Sequence[Run], *, prune: bool) -> Iterator[tuple[Hashes, Integers]]:
    """Hashes and records of the rows of all runs in the order of a segment, for :func:`segment.write`.

    Args:
        runs: oldest first. Of rows with equal key and ``computed_at`` that of the last run remains.
        prune: see :func:`hypercast.store.local.records.arrange`. A single run goes through as it is.

    Raises:
        DamagedError: a record is not what was written.
    """
    if len(runs) == 1:
        yield from _alone(runs[0])
        return
    rows = sum(map(len, runs))
    pieces = -(-rows * runs[0].record.shape[1] * WORD // PIECE_BYTES)
    # Equal hashes never part, so that every row meets those that it replaces.
    bounds = np.array([piece * 2**64 // pieces for piece in range(1, pieces)], np.uint64)
    stops = [[*np.searchsorted(run.hash, bounds).tolist(), len(run)] for run in runs]
    starts = [0] * len(runs)
    for piece in range(pieces):
        parts = [
            (run, start, stop[piece])
            for run, start, stop in zip(runs, starts, stops, strict=True)
            if start < stop[piece]
        ]
        starts = [stop[piece] for stop in stops]
        if parts:
            yield _merge(parts, prune=prune)


def _alone(run: Run) -> Iterator[tuple[Hashes, Integers]]:
    step = max(1, PIECE_BYTES // run.record.strides[0])
    for start in range(0, len(run), step):
        stop = min(start + step, len(run))
        yield run.hash[start:stop], run.slice(start, stop)


def _merge(parts: list[tuple[Run, int, int]], *, prune: bool) -> tuple[Hashes, Integers]:
    hash_N = np.concatenate([run.hash[start:stop] for run, start, stop in parts])
    record_NW = np.concatenate([_checked(run, start, stop) for run, start, stop in parts])
    order = records.arrange(hash_N, record_NW[:, KEY], record_NW[:, COMPUTED_AT], prune=prune)
    return hash_N[order], record_NW[order]


def _checked(run: Run, start: int, stop: int) -> Integers:
    record = run.slice(start, stop)
    good = records.whole(record, run.seal)
    if not good.all():
        raise DamagedError(run.damage(f"row {start + int(np.argmin(good))} is not what was written"))
    return record


def count_to_merge(rows: Sequence[int]) -> int:
    """How many of the latest segments become one, from the ``rows`` of each, oldest first.

    Two, and the next older one as long as it is at most twice as long as all of them: so a row is written again a
    logarithmic number of times, and a long old segment is left alone by short new ones.
    """
    count = min(2, len(rows))
    while count < len(rows) and rows[-count - 1] <= 2 * sum(rows[-count:]):
        count += 1
    return count
