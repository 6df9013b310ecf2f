"""What a finished comparison predicted, as sums per user: of one run folder, or of several with other seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

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
    (first, all_of_them), *others = parts.items()
    for name, part in others:
        both = all_of_them.beside(part)
        if both is None:
            raise DataError(f"{name}: predictions are of other rows than those of {first}: not one comparison.")
        all_of_them = both
    return all_of_them


def _spread(each: UserSums, *, first_seed: int) -> UserSums:
    """With references that there are once beside every seed, as :func:`transfer.gain.paired_under` says."""
    under = gain.paired_under(each.columns)
    columns = tuple(replace(column, seed=first_seed + seed) for column, seed in under)
    return replace(each.only([column for column, _ in under]), columns=columns)
