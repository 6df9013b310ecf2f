"""What a finished comparison predicted, as sums per user: of one run folder, or of several with other seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from streaming.errors import DataError
from transfer import predictions, sums
from transfer.gain import CONTROL, Span
from transfer.predictions import Column
from transfer.sums import UserSums

_RUN = 1000  # seeds of the n-th run are counted from n times this


def runs_in(work: Path) -> list[Path]:
    """``work`` itself if it is a run folder, else the run folders right inside it.

    Raises:
        DataError: there are none.
    """
    found = [work] if predictions.surfaces(work) else []
    if not found and work.is_dir():
        found = sorted(folder for folder in work.iterdir() if folder.is_dir() and predictions.surfaces(folder))
    if not found:
        raise DataError(
            f"{work}: no run folder and none inside. Make one: hypercast run configs/platform/complete_journey.yaml"
        )
    return found


def read(runs: Sequence[Path], *, surface: str, span: Span, task: str, untouched: bool) -> UserSums:
    """Sums of one surface over a span, with the columns of all runs.

    Seeds are renumbered to differ between runs. An arm that each run has once (the foundation model's head, LightGBM)
    stands beside every seed of its run's control, so that it is paired with all of them.

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
    seeds = sorted({column.seed for column in each.columns if column.arm == CONTROL}) or [0]
    pairs: list[tuple[Column, int]] = []  # a column and the seed to show it under
    for arm in dict.fromkeys(column.arm for column in each.columns):
        own = [column for column in each.columns if column.arm == arm]
        pairs += [(own[0], seed) for seed in seeds] if len(own) == 1 else [(column, column.seed) for column in own]
    columns = tuple(replace(column, seed=first_seed + seed) for column, seed in pairs)
    return replace(each.only([column for column, _ in pairs]), columns=columns)
