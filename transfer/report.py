"""The report of a run: what the foundation model is worth to each surface, or that it is worth nothing there.

Reads the prediction tables of a run folder, at any time during the run; spans without data are absent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from transfer import cohort, gain, predictions, sums
from transfer.gain import C2AL, CONTROL, CONTROL_MATCHED, FM_HEAD, LOGIT_RESIDUAL, POOLED, TAE, TREATED, Span
from transfer.notation import LEGEND, number
from transfer.row import Row as Row
from transfer.row import row_dict, row_of
from transfer.sums import UserSums
from transfer.tables import Columns, ladder, level, of_rows
from transfer.tables import gain as over


@dataclass(frozen=True, kw_only=True)
class SpanTable:
    """Rows per surface and the pooled one; the same without the requests tagged as split trips, where there are any.

    ``cohorts``: rows of the cohorts that some arm has found, minorities first, each named after its surface.
    """

    span: Span
    windows: int
    rows: list[Row]
    without_split_trips: list[Row]
    cohorts: list[Row]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a run shows of one task. ``untouched``: of the fifth of the users that development never saw."""

    task: str
    untouched: bool
    spans: list[SpanTable]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON; gains are keyed ``ARM_vs_AGAINST``."""
        return {
            "task": self.task,
            "untouched": self.untouched,
            "spans": {
                table.span.name: {
                    "first_window": table.span.first,
                    "last_window": table.span.last,
                    "windows": table.windows,
                    "surfaces": {row.surface: row_dict(row) for row in table.rows},
                    "without_split_trips": {row.surface: row_dict(row) for row in table.without_split_trips},
                    "cohorts": {row.surface: row_dict(row) for row in table.cohorts},
                    "notes": table.notes,
                }
                for table in self.spans
            },
        }

    def nothing_yet(self) -> str:
        """What to say where no span has data."""
        return f"No predictions of task '{self.task}' in the reported windows yet."

    def to_markdown(self) -> str:
        """The report as Markdown; a span's first table holds all that a terminal shows in several."""
        blocks = []
        for table in self.spans:
            columns = _LEVELS | _in_percent(_GAINS | _HALVES)
            named = {
                "": of_rows("", columns, table.rows),
                "Without split trips:": of_rows("", columns, table.without_split_trips),
                "By cohort:": of_rows("", _in_percent(_BY_COHORT), table.cohorts, corner="cohort"),
            }
            shown = ladder(table.rows[-1])
            blocks.append(f"### {_title(self, table)}")
            blocks += [text for name, grid in named.items() if grid is not None for text in (name, grid.to_markdown())]
            blocks += [f"{shown.title}:", shown.to_markdown()]
            blocks.append("\n".join(f"- {note}" for note in table.notes))
        return "\n\n".join([*(block for block in blocks if block), LEGEND if blocks else self.nothing_yet()]) + "\n"

    def to_rich(self) -> Group:
        """The report for a terminal of 80 columns or more: ``Console().print(report.to_rich())``."""
        parts: list[Table | Text] = []
        for table in self.spans:
            grids = [
                of_rows("NE and AUC", _LEVELS, table.rows, floors=False),
                of_rows("Gain, %", _GAINS, table.rows),
                of_rows(_OF_HALVES, _HALVES, table.rows),
                of_rows("Gain without split trips, %", _MAIN, table.without_split_trips),
                of_rows("Gain by cohort, %", _BY_COHORT, table.cohorts, corner="cohort"),
                ladder(table.rows[-1]),
            ]
            parts.append(Text(_title(self, table), style="bold"))
            for grid in grids:
                parts += [Text(), grid.to_rich()] if grid is not None else []
            if table.notes:
                parts += [Text(), *(Text(f"• {note}") for note in table.notes)]
            parts.append(Text())
        parts.append(Text(LEGEND, style="dim") if self.spans else Text(self.nothing_yet()))
        return Group(*parts)


def build(
    run: Path,
    *,
    task: str,
    spans: Sequence[Span] = (gain.COLD, gain.STEADY),
    surfaces: Sequence[str] | None = None,
    untouched: bool = False,
    replicates: int = 2000,
    seed: int = 0,
    advance: Callable[[str], None] = lambda message: None,
) -> Report:
    """Read a run folder and compare its arms.

    Args:
        run: the run folder; see :mod:`transfer.predictions`.
        task: whose labels are judged.
        spans: windows to pool, each a table of its own.
        surfaces: order of the rows; None takes all that are there, by name.
        untouched: report the untouched fifth of the users instead of all others.
        replicates: bootstrap draws.
        seed: of the bootstrap.
        advance: told what is being read, for a progress display.

    Raises:
        DataError: a prediction table is broken, or has no such task.
    """
    names = predictions.surfaces(run) if surfaces is None else list(surfaces)
    tables = []
    for span in spans:
        by_surface: dict[str, UserSums] = {}
        by_cohort: dict[str, UserSums] = {}
        seen: set[int] = set()
        notes: list[str] = []
        for name in names:
            windows = [window for window in predictions.windows(run, name) if window in span]
            if not windows:
                continue
            advance(f"{name}, {span.name}")
            parts = [sums.of_window(run, surface=name, window=window, task=task) for window in windows]
            by_surface[name] = sums.combine(parts).select(untouched=untouched)
            found = cohort.of_windows(run, surface=name, windows=windows, task=task)
            by_cohort |= {f"{name}: {part}": each.select(untouched=untouched) for part, each in found.items()}
            seen.update(windows)
            notes += _lost_columns(name, parts, by_surface[name])
        if not by_surface:
            continue
        if len(by_surface) > 1:
            by_surface[POOLED] = gain.pooled(by_surface)
        rows = [row_of(name, span, each, replicates=replicates, seed=seed) for name, each in by_surface.items()]
        tagged = any(each.tagged.any() for each in by_surface.values())
        plain = {name: each.select(tagged=False) for name, each in by_surface.items()} if tagged else {}
        without = [row_of(name, span, each, replicates=replicates, seed=seed) for name, each in plain.items()]
        cohorts = [row_of(name, span, each, replicates=replicates, seed=seed) for name, each in by_cohort.items()]
        notes += _findings(rows)
        tables.append(
            SpanTable(
                span=span, windows=len(seen), rows=rows, without_split_trips=without, cohorts=cohorts, notes=notes
            )
        )
    return Report(task=task, untouched=untouched, spans=tables)


def _findings(rows: Sequence[Row]) -> list[str]:
    """Sentences that say plainly where the treated arm does not beat the control, or cannot be judged."""
    said = []
    for row in rows:
        for against, name in ((CONTROL, "control"), (CONTROL_MATCHED, "matched control")):
            one = row.gains.get((TREATED, against))
            if one is None or one.verdict == "better":
                continue
            shown = f"{one.gain_pct:+.2f} % [{one.lo:+.2f}, {one.hi:+.2f}]"
            if one.verdict == "worse":
                said.append(f"{row.surface}: the treated arm is WORSE than the {name}: {shown}.")
            elif one.excludes_zero:
                said.append(f"{row.surface}: no gain over the {name}: {shown} is within the noise floor.")
            else:
                said.append(f"{row.surface}: no gain over the {name}: the interval of {shown} includes 0.")
    if not any(row.gains for row in rows):
        said.append(
            "No arm can be compared: that takes a control and another arm with the same seed, and labels in these "
            "windows."
        )
    return said


def _lost_columns(surface: str, parts: Sequence[UserSums], kept: UserSums) -> list[str]:
    """Arms that some window of the span lacks are not judged; say which."""
    every = {column for part in parts for column in part.columns}
    lost = sorted(every.difference(kept.columns))
    return [
        f"{surface}: {column.arm} seed {column.seed} left out: it predicted only "
        f"{sum(column in part.columns for part in parts)} of the {len(parts)} windows."
        for column in lost
    ]


def _title(report: Report, table: SpanTable) -> str:
    users = "untouched users only" if report.untouched else "untouched users left out"
    span = table.span
    return f"{report.task}, {span.name} (windows {span.first} to {span.last}, {table.windows} present), {users}"


_LEVELS: Columns = {
    "NE control": level(CONTROL),
    "NE matched": level(CONTROL_MATCHED),
    "NE treated": level(TREATED),
    "NE FM head": level(FM_HEAD),
    "AUC treated": lambda row: number(row.auc.get(TREATED)),
}
_MAIN: Columns = {"treated over control": over(TREATED, CONTROL)}
_GAINS: Columns = _MAIN | {"treated over matched": over(TREATED, CONTROL_MATCHED)}
_OF_HALVES = "Gain of either half of the treatment alone, %"
_BY_COHORT: Columns = {"C2AL over control": over(C2AL, CONTROL), "treated over control": over(TREATED, CONTROL)}
_HALVES: Columns = {
    "logit residual over control": over(LOGIT_RESIDUAL, CONTROL),
    "TAE over control": over(TAE, CONTROL),
}


def _in_percent(columns: Columns) -> Columns:
    return {f"{name}, %": cell for name, cell in columns.items()}
