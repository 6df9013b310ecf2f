"""Sections of the page: gains, the ladder of arms, calibration, time to parity, studies, coverage."""

from collections.abc import Callable, Mapping, Sequence

from transfer import figures
from transfer.arm_style import in_order
from transfer.gain import CONTROL, CONTROL_MATCHED, FM_HEAD, POOLED, TREATED, Gain
from transfer.health import Health
from transfer.notation import floor, interval, mark, number, percent
from transfer.page_parts import Cell, Line, bullets, details, figure, paragraph, section, table
from transfer.parity import BLOCK, Parity
from transfer.report import Row, SpanTable
from transfer.studies import AXES, Studies
from transfer.tables import against


def gains(each: SpanTable) -> str:
    """Gains and levels of the main arms, in the columns that the run has something for."""
    worth = [(TREATED, CONTROL, "treated over control, %"), (TREATED, CONTROL_MATCHED, "treated over matched, %")]
    levels = {"NE control": CONTROL, "NE matched": CONTROL_MATCHED, "NE treated": TREATED, "NE FM head": FM_HEAD}
    compared = [pair for pair in worth if any(pair[:2] in row.gains for row in each.rows)]
    shown = {name: arm for name, arm in levels.items() if any(arm in row.ne for row in each.rows)}
    areas = [TREATED] if any(TREATED in row.auc for row in each.rows) else []
    columns = [*(name for *_, name in compared), *shown, *(f"AUC {arm}" for arm in areas)]

    def line(row: Row) -> Line:
        cells = [_gain_cell(row.gains.get((arm, against))) for arm, against, _ in compared]
        cells += [Cell(text=number(row.ne.get(arm))) for arm in shown.values()]
        cells += [Cell(text=number(row.auc.get(arm))) for arm in areas]
        return Line(name=row.surface, cells=cells, total=row.surface == POOLED)

    parts = [table("surface", columns, [line(row) for row in each.rows]), bullets(each.notes)]
    if each.without_split_trips and compared:
        plain = [
            Line(name=row.surface, cells=[_gain_cell(row.gains.get((TREATED, CONTROL)))], total=row.surface == POOLED)
            for row in each.without_split_trips
        ]
        parts.append(details("Without split trips", table("surface", columns[:1], plain)))
    if each.cohorts:
        parts.append(details("Gain over the control by cohort", _gains_over(each.cohorts, CONTROL, corner="cohort")))
    return section(f"What the foundation model is worth: {_span(each)}", *parts)


def ladder(last: SpanTable) -> str:
    """Every arm, references first: drawn over the control on every surface, in numbers over each reference."""
    caption = f"Gain of every arm over the control, {_span(last)}"
    row = last.rows[-1]
    compared = against(last.rows)
    lines = [
        Line(
            name=arm,
            cells=[
                Cell(text=number(row.ne[arm])),
                *(_gain_cell(row.gains.get((arm, other))) for other in compared.values()),
                Cell(text=f"{row.eta[arm]:.2f}" if arm in row.eta else "—"),
            ],
        )
        for arm in in_order(row.ne)
    ]
    told = (
        f"{caption}, with 95 % intervals. The table is of {row.surface}; η: share of the FM's own advantage over the "
        "control that an arm keeps, where the FM is ahead by more than the noise floor."
    )
    by_surface = [
        details(f"By surface: gain {heading}, %", _gains_over(last.rows, other, corner="surface"))
        for heading, other in compared.items()
    ]
    drawn = figure(figures.to_svg(figures.ladder(last.rows)), caption=caption)
    numbers = table("arm", ["NE", *(f"{heading}, %" for heading in compared), "η"], lines)
    return section("Ladder of arms", paragraph(told), drawn, numbers, *by_surface)


def calibration(rows: Sequence[Row]) -> str:
    """Of every arm."""
    arms = in_order(arm for row in rows for arm in row.calibration)
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


def time_to_parity(parities: Sequence[Parity]) -> str:
    """How long the control needs on every surface."""
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


def on_studies(found: Studies) -> str:
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


def coverage(noted: Health) -> str:
    """How much of a surface the embeddings cover, and how old they are; nothing where nothing was noted."""
    if not noted.coverage:
        return ""
    statuses = list(dict.fromkeys(status for series in noted.coverage.values() for status in series))
    lines = []
    for surface, series in noted.coverage.items():
        cells = [
            _over_windows(series.get(each, {}), _share, worst=min if each == "fresh" else max) for each in statuses
        ]
        cells.append(_over_windows(noted.age.get(surface, {}), lambda hours: f"{hours:.1f} h", worst=max))
        lines.append(Line(name=surface, cells=cells))
    told = "Share of candidates whose embedding was fresh, stale, expired or missing, and the mean "
    told += "age of those that were found: mean over windows, and the worst."
    return section("Coverage and staleness", paragraph(told), table("surface", [*statuses, "mean age"], lines))


def _gain_cell(one: Gain | None) -> Cell:
    """Value, interval and noise floor, one below the other."""
    if one is None:
        return Cell(text="—")
    return Cell(
        text=f"{percent(one.gain_pct)} {mark(one)}".rstrip(),
        small=[interval(one), f"floor {floor(one.noise_floor_pct)}"],
        kind=one.verdict if one.verdict != "none" else "",
    )


def _gains_over(rows: Sequence[Row], reference: str, *, corner: str) -> str:
    """Gains of every arm that is compared with ``reference``, a line a row."""
    arms = in_order(arm for row in rows for arm, other in row.gains if other == reference)
    lines = [
        Line(
            name=row.surface,
            cells=[_gain_cell(row.gains.get((arm, reference))) for arm in arms],
            total=row.surface == POOLED,
        )
        for row in rows
    ]
    return table(corner, arms, lines)


def _over_windows(values: Mapping[int, float], show: Callable[[float], str], *, worst: Callable[..., int]) -> Cell:
    """Mean, and below it the worst; ties go to one end of the run."""
    if not values:
        return Cell(text="—")
    window = worst(values, key=lambda each: (values[each], each))
    return Cell(text=show(sum(values.values()) / len(values)), small=[f"window {window}: {show(values[window])}"])


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _span(each: SpanTable) -> str:
    return f"{each.span.name} (windows {each.span.first} to {each.span.last}, {each.windows} present)"
