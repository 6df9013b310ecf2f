"""What would go wrong with an import, or make less of it than there could be, each with its remedy."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from streaming.importers.mapping.config import MappingConfig
from streaming.importers.mapping.prepare import DAY, HOUR, Prepared

FEW_POSITIVES = 100
LARGE_WINDOW = 10_000_000  # rows; about 2 GB while it is built


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something worth knowing before an import.

    Attributes:
        severity: an ``error`` stops the import, a ``warning`` makes the data set worse than it could be, a ``note``
            says what is done.
    """

    severity: Literal["error", "warning", "note"]
    what: str
    remedy: str


def findings(config: MappingConfig, prepared: Prepared, sizes: npt.NDArray[np.int32], ties: int) -> Iterator[Finding]:
    """Findings about what was prepared.

    Args:
        sizes: rows of each request [B].
        ties: rows that share user and time with another row.
    """
    yield from _of_rows(config, prepared)
    yield from _of_labels(config, prepared)
    yield from _of_time(config, prepared)
    yield from _of_requests(config, prepared, sizes, ties)


def _of_rows(config: MappingConfig, prepared: Prepared) -> Iterator[Finding]:
    bad, seen, rows = prepared.quarantine.bad, prepared.quarantine.rows, prepared.rows.rows.sum()
    if bad > config.max_bad_share * seen:
        yield Finding(
            severity="error",
            what=f"{bad} of {seen} rows are bad, more than max_bad_share {config.max_bad_share:g} allows",
            remedy="see the reasons; correct the mapping or the files, or raise max_bad_share",
        )
    elif bad:
        yield Finding(
            severity="note",
            what=f"{bad} of {seen} rows are bad",
            remedy="they are set aside beside the data set, with their reasons",
        )
    # Nulls of engagement files count under their action's name, against rows of their own.
    late = {task.known_at.column for task in config.tasks if task.known_at is not None}  # null where nothing came
    for column, nulls in prepared.tally.null.items():
        if "." not in column and column not in late and nulls > 0.5 * rows:
            yield Finding(
                severity="warning",
                what=f"{nulls / seen:.0%} of column '{column}' is null",
                remedy="is it the right column, and are its nulls known to csv.null_values?",
            )
    for value, name in prepared.surfaces.renamed().items():
        yield Finding(
            severity="note",
            what=f"surface {value[:60]!r} is called {name}",
            remedy="to call it otherwise, name it in surface.names",
        )
    if len(prepared.surfaces.names) == 1:
        yield Finding(
            severity="note",
            what="there is one surface only",
            remedy="transfer between surfaces needs two; map a column that tells pages or placements apart",
        )


def _of_labels(config: MappingConfig, prepared: Prepared) -> Iterator[Finding]:
    tally = prepared.tally
    for index, task in enumerate(config.tasks):
        known, positive = int(tally.known[:, index].sum()), int(tally.positive[:, index].sum())
        if known == 0 or positive == 0:
            what = "is never known" if known == 0 else "is never 1"
            yield Finding(
                severity="warning",
                what=f"the label of task {task.name} {what}",
                remedy="correct its column, 'equals' or 'at_least'",
            )
        elif positive == known and config.negatives is None:
            yield Finding(
                severity="warning",
                what=f"the label of task {task.name} is always 1: there is nothing to tell apart",
                remedy="draw negatives, for example negatives: {per_positive: 4, from: surface_catalogue}",
            )
        for number, name in enumerate(prepared.surfaces.names):
            if tally.shown[number] > 0 and tally.positive[number, index] < FEW_POSITIVES and positive:
                yield Finding(
                    severity="warning",
                    what=f"task {task.name} has only {tally.positive[number, index]} positives on surface {name}",
                    remedy="no gain will be measurable there; merge it with another by surface.names",
                )
    if tally.engagements == 0:
        yield Finding(
            severity="warning",
            what="there are no engagements, so that all histories are empty",
            remedy="say in 'engagements' which rows or files they are",
        )
    if config.dense:
        yield Finding(
            severity="note",
            what=f"dense columns are taken as they are: {', '.join(config.dense)}",
            remedy="make sure that each is as of its row's time; no check can tell",
        )


def _of_time(config: MappingConfig, prepared: Prepared) -> Iterator[Finding]:
    windows, counts = len(prepared.rows.rows), prepared.rows.rows
    for name, grain in (("days", DAY), ("hours", HOUR)):
        if prepared.tally.grain % grain == 0:
            yield Finding(
                severity="warning",
                what=f"all times are whole {name}: what happened in the same one sees nothing of each other",
                remedy="map a column of finer times, if there is one",
            )
            break
    if windows < 3:
        yield Finding(
            severity="warning",
            what=f"there are only {windows} windows: every window is predicted before it is trained on",
            remedy="give shorter windows",
        )
    if counts.max() > LARGE_WINDOW:
        yield Finding(
            severity="warning",
            what=f"the largest window has {int(counts.max()):,} rows, and a window is built in memory",
            remedy="give shorter windows",
        )
    if (counts == 0).sum() > windows // 2:
        yield Finding(
            severity="warning",
            what=f"{int((counts == 0).sum())} of {windows} windows have no rows",
            remedy="give longer windows, or set 'earliest' after the rows that lie far before the others",
        )
    length = int(prepared.boundaries[1] - prepared.boundaries[0])
    for task, delay in zip(config.tasks, prepared.tally.longest_delay.tolist(), strict=True):
        if delay > length:
            yield Finding(
                severity="note",
                what=f"labels of task {task.name} become known up to {delay / DAY:.1f} days late, longer than a window",
                remedy="training waits for them; nothing needs to be done",
            )


def _of_requests(
    config: MappingConfig, prepared: Prepared, sizes: npt.NDArray[np.int32], ties: int
) -> Iterator[Finding]:
    rows, users = int(prepared.rows.rows.sum()), len(prepared.users.codes())
    if sizes.max() == 1 and config.negatives is None:
        yield Finding(
            severity="note",
            what="every request has one candidate",
            remedy="where several were shown together, give requests.id or requests.within_seconds",
        )
    if prepared.tally.engagements < 2 * users:
        yield Finding(
            severity="warning",
            what=f"there are {prepared.tally.engagements / users:.1f} engagements a user: histories say little",
            remedy="take in more kinds of rows as engagements, or a longer time",
        )
    if config.requests.id is not None and ties > 0.5 * rows and sizes.max() == 1:
        yield Finding(
            severity="warning",
            what="rows share user and time, but every one has a request id of its own",
            remedy="is it a row's id? leave requests.id out",
        )
