"""The report as one HTML page that needs nothing else: gains, ladder of arms, windows, calibration, parity, health.

Studies of what the gains depend on join it, where there are any.

Legible without scripts, on a light ground and on a dark one. Names from data are text and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streaming import files
from transfer import curve, figures, health, parity
from transfer.curve import Curves
from transfer.gain import CONTROL, CONTROL_MATCHED, FM_HEAD, POOLED, TREATED, Gain
from transfer.health import Health
from transfer.notation import LEGEND, floor, interval, mark, number, percent
from transfer.page_parts import (
    Cell,
    Line,
    bullets,
    details,
    document,
    figure,
    heading,
    paragraph,
    section,
    table,
)
from transfer.parity import BLOCK, Parity
from transfer.report import Report, Row, SpanTable
from transfer.studies import AXES, Studies


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that the page shows: ``title``, ``report``, ``curves`` by window, ``parities``, ``health``, and
    ``studies`` if there are any.
    """

    title: str
    report: Report
    curves: Curves
    parities: Sequence[Parity]
    health: Health
    studies: Studies | None = None

    def to_html(self) -> str:
        """The page."""
        users = "The untouched fifth of the users" if self.report.untouched else "All users but the untouched fifth"
        parts = [
            heading(self.title),
            paragraph(f"Task “{self.report.task}”. {users}.", dim=True),
            *(_gains(each) for each in self.report.spans),
        ]
        if not self.report.spans:
            parts.append(paragraph(self.report.nothing_yet()))
        else:
            parts += [self._ladder(), self._windows(), _calibration(self.report.spans[-1].rows)]
        if self.parities:
            parts.append(_parity(self.parities))
        if self.studies is not None:
            parts.append(_studies(self.studies))
        parts += [_coverage(self.health), self._drift(), paragraph(LEGEND, dim=True)]
        return document(self.title, *(part for part in parts if part))

    def _ladder(self) -> str:
        last = self.report.spans[-1]
        arms = _present(last.rows, _over_control)
        lines = [
            Line(
                name=row.surface,
                cells=[_gain_cell(row.gains.get((arm, CONTROL))) for arm in arms],
                total=row.surface == POOLED,
            )
            for row in last.rows
        ]
        caption = f"Gain of every arm over the control, {_span(last)}"
        drawn = figure(figures.to_svg(figures.ladder(last.rows)), caption=caption)
        numbers = details("The same in numbers", table("surface", arms, lines))
        return section("Ladder of arms", paragraph(f"{caption}, with 95 % intervals."), drawn, numbers)

    def _windows(self) -> str:
        drawn = [
            figure(
                figures.to_svg(figures.gain_over_windows(self.curves)), caption="Gain of the treated arm per window"
            ),
            figure(figures.to_svg(figures.entropy_over_windows(self.curves)), caption="Normalised entropy per window"),
        ]
        return section("Window by window", *drawn) if self.curves else ""

    def _drift(self) -> str:
        if not self.health.drift:
            return ""
        alarms = sorted(window for window, value in self.health.drift.get("alarm", {}).items() if value)
        told = f"Alarm after windows {', '.join(map(str, alarms))}." if alarms else "No alarm."
        drawn = figure(figures.to_svg(figures.drift_over_windows(self.health.drift)), caption="Drift per snapshot")
        return section("Drift from snapshot to snapshot", paragraph(told), drawn)


def build(
    run: Path,
    result: Report,
    *,
    title: str,
    surfaces: Sequence[str],
    curves: Curves | None = None,
    studies: Studies | None = None,
    replicates: int = 500,
) -> Page:
    """The page of a run folder.

    Args:
        run: the run folder.
        result: its report; the page is of the same task and users.
        title: of the page.
        surfaces: order of the rows.
        curves: of the run, if they are at hand; None reads them.
        studies: to be shown with it.
        replicates: bootstrap draws per window.

    Raises:
        DataError: a prediction table is broken.
        CheckpointError: a checkpoint is damaged.
    """
    place: dict[str, Any] = {
        "task": result.task,
        "surfaces": surfaces,
        "untouched": result.untouched,
        "replicates": replicates,
    }
    return Page(
        title=title,
        report=result,
        curves=curve.curves(run, **place) if curves is None else curves,
        parities=parity.parities(run, **place),
        health=health.read(run, surfaces=surfaces),
        studies=studies,
    )


def write(page: Page, path: Path) -> Path:
    """Write the page, whole or not at all."""
    files.write_text(path, page.to_html())
    return path


def _gains(each: SpanTable) -> str:
    levels = {"NE control": CONTROL, "NE matched": CONTROL_MATCHED, "NE treated": TREATED, "NE FM head": FM_HEAD}
    columns = ["treated over control, %", "treated over matched, %", *levels, "AUC treated"]
    lines = [
        Line(
            name=row.surface,
            cells=[
                _gain_cell(row.gains.get((TREATED, CONTROL))),
                _gain_cell(row.gains.get((TREATED, CONTROL_MATCHED))),
                *(Cell(text=number(row.ne.get(arm))) for arm in levels.values()),
                Cell(text=number(row.auc.get(TREATED))),
            ],
            total=row.surface == POOLED,
        )
        for row in each.rows
    ]
    parts = [table("surface", columns, lines), bullets(each.notes)]
    if each.without_split_trips:
        plain = [
            Line(
                name=row.surface,
                cells=[_gain_cell(row.gains.get((TREATED, CONTROL)))],
                total=row.surface == POOLED,
            )
            for row in each.without_split_trips
        ]
        parts.append(details("Without split trips", table("surface", columns[:1], plain)))
    if each.cohorts:
        arms = _present(each.cohorts, _over_control)
        lines = [
            Line(name=row.surface, cells=[_gain_cell(row.gains.get((arm, CONTROL))) for arm in arms])
            for row in each.cohorts
        ]
        parts.append(details("Gain over the control by cohort", table("cohort", arms, lines)))
    return section(f"What the foundation model is worth: {_span(each)}", *parts)


def _calibration(rows: Sequence[Row]) -> str:
    arms = _present(rows, lambda row: list(row.calibration))
    lines = [
        Line(
            name=row.surface,
            cells=[Cell(text=number(row.calibration.get(arm))) for arm in arms],
            total=row.surface == POOLED,
        )
        for row in rows
    ]
    told = "Sum of predicted probabilities over sum of labels, in the last span; 1 is right, above is too high."
    return section("Calibration", paragraph(told), table("surface", arms, lines))


def _parity(parities: Sequence[Parity]) -> str:
    lines = []
    for each in parities:
        needed = "not yet" if each.windows is None else str(each.windows)
        cells = [Cell(text=needed), Cell(text=f"{each.first} to {each.last}"), _gain_cell(each.final)]
        lines.append(Line(name=each.surface, cells=cells, total=each.surface == POOLED))
    told = (
        f"Windows that the control needs until the treated arm is ahead of it no more, judged in blocks of {BLOCK}: "
        "the start of the block from which on no gain is clear of 0."
    )
    columns = ["windows to parity", "windows judged", "gain in the last block, %"]
    return section("Time to parity", paragraph(told), table("surface", columns, lines))


def _studies(found: Studies) -> str:
    """Both figures, and their numbers."""
    parts = []
    if found.axes:
        lines = [
            Line(
                name=f"{axis}: {place.at}",
                cells=[
                    Cell(
                        text=percent(place.gain_pct),
                        small=[f"[{percent(place.lo)}, {percent(place.hi)}]", f"floor {floor(found.noise_floor_pct)}"],
                    )
                ],
            )
            for axis, places in found.axes.items()
            for place in places
        ]
        told = "; ".join(f"{axis}: {AXES[axis]}" for axis in found.axes)
        parts += [
            figure(figures.to_svg(figures.gain_over_axes(found)), caption="Gain over the control, by study"),
            details("The same in numbers", paragraph(told), table("run", ["gain over control, %"], lines)),
        ]
    if found.teachers:
        columns = ["NE of the FM's own head", "NE of the expert"]
        lines = [
            Line(
                name=f"{teacher.flops / 1e6:.2f} MFLOP",
                cells=[Cell(text=number(teacher.fm_ne)), Cell(text=number(teacher.expert_ne))],
            )
            for teacher in found.teachers
        ]
        parts += [
            figure(figures.to_svg(figures.entropy_over_compute(found)), caption="Expert against the teacher's compute"),
            details("The same in numbers", table("teacher's compute for a candidate", columns, lines)),
        ]
    return section("What the gain depends on", *parts)


def _coverage(noted: Health) -> str:
    if not noted.coverage:
        return ""
    statuses = _present(list(noted.coverage.values()), list)
    lines = []
    for surface, series in noted.coverage.items():
        cells = []
        for status in statuses:
            values = series.get(status, {})
            if not values:
                cells.append(Cell(text="—"))
                continue
            pick = min if status == "fresh" else max
            worst = pick(values, key=lambda window: (values[window], window))
            mean = sum(values.values()) / len(values)
            cells.append(Cell(text=_share(mean), small=[f"window {worst}: {_share(values[worst])}"]))
        lines.append(Line(name=surface, cells=cells))
    told = "Share of candidates whose embedding was fresh, stale, expired or missing: mean over windows, and the worst."
    return section("Coverage and staleness", paragraph(told), table("surface", statuses, lines))


def _gain_cell(one: Gain | None) -> Cell:
    """Value, interval and noise floor, one below the other."""
    if one is None:
        return Cell(text="—")
    return Cell(
        text=f"{percent(one.gain_pct)} {mark(one)}".rstrip(),
        small=[interval(one), f"floor {floor(one.noise_floor_pct)}"],
        kind=one.verdict if one.verdict != "none" else "",
    )


def _over_control(row: Row) -> list[str]:
    return [arm for arm, against in row.gains if against == CONTROL]


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _span(each: SpanTable) -> str:
    return f"{each.span.name} (windows {each.span.first} to {each.span.last}, {each.windows} present)"


def _present(rows: Sequence[Any], arms_of: Callable[[Any], list[str]]) -> list[str]:
    """What any row has, in the order of first sight."""
    return list(dict.fromkeys(name for row in rows for name in arms_of(row)))
