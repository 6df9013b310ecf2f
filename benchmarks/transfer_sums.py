"""What a finished comparison predicted, as sums per user: of one run folder, or of several with other seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from streaming.errors import DataError
from transfer import gain, sums
from transfer.gain import Span
from transfer.sums import UserSums

_RUN = 1000  # seeds of the n-th run are counted from n times this


def read(runs: Sequence[Path], *, surface: str, span: Span, task: str, untouched: bool) -> UserSums:
    """Sums of one surface over a span, with the columns of all runs.

    Seeds are renumbered to differ between runs. A reference that each run has once (the foundation model's head,
    LightGBM) stands beside every seed of its run, so that it is paired with those and with no other run's.

    Raises:
        DataError: a window of the span is missing, or the runs predicted different rows.
    """
    parts = []
    for number, run in enumerate(runs):
        windows = [sums.of_window(run, surface=surface, window=w, task=task) for w in range(span.first, span.last + 1)]
        parts.append(_spread(sums.combine(windows).select(untouched=untouched), first_seed=_RUN * number))
    return joined({f"{run}, '{surface}'": part for run, part in zip(runs, parts, strict=True)})


def joined(parts: Mapping[str, UserSums]) -> UserSums:
    """All columns of sums over the same rows, which are named for the message.

    Raises:
        DataError: they are over different rows.
    """
    (name, first), *others = parts.items()
    for other_name, other in others:
        if not all(np.array_equal(getattr(first, rows), getattr(other, rows)) for rows in _ROWS):
            raise DataError(f"{other_name}: predictions are of other rows than those of {name}: not one comparison.")
    wide = {each: np.concatenate([getattr(part, each) for part in parts.values()], axis=1) for each in _WIDE}
    return replace(first, columns=tuple(column for part in parts.values() for column in part.columns), **wide)


_ROWS = ("user", "tagged", "rows", "positives")
_WIDE = ("loss", "weight_loss", "predicted", "histogram")


def _spread(each: UserSums, *, first_seed: int) -> UserSums:
    """With references that there are once beside every seed, as :func:`transfer.gain.paired_under` says."""
    under = gain.paired_under(each.columns)
    columns = tuple(replace(column, seed=first_seed + seed) for column, seed in under)
    return replace(each.only([column for column, _ in under]), columns=columns)
