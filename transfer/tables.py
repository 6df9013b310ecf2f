"""Tables of a report, in a terminal and in Markdown; they have the columns that the run has something for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from transfer.arm_style import in_order
from transfer.gain import CONTROL, CONTROL_MATCHED, LIGHTGBM, POOLED
from transfer.notation import floor, interval, mark, number, percent
from transfer.row import Row

Cell = Callable[[Row], str]
Columns = dict[str, Cell]
"""What a table shows of a row, by heading."""

NOTHING = "—"
_AGAINST = {"over control": CONTROL, "over matched": CONTROL_MATCHED, "over LightGBM": LIGHTGBM}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table as text: ``corner`` stands over the names of the lines, of which each has a cell for every column."""

    title: str
    corner: str
    columns: Sequence[str]
    lines: Mapping[str, Sequence[str]]

    def to_markdown(self) -> str:
        """Markdown has neither line breaks nor padding in cells; the title is left out."""
        cells = [[self.corner, *self.columns], *([name, *cells] for name, cells in self.lines.items())]
        lines = [
            "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in line) + " |" for line in cells
        ]
        return "\n".join([lines[0], "|---" + "|---:" * len(self.columns) + "|", *lines[1:]])

    def to_rich(self) -> Table:
        """Cells that find no room, as with long surface names, are folded and never cut."""
        table = Table(
            title=self.title,
            title_justify="left",
            title_style="italic",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column(self.corner, overflow="fold")
        for name in self.columns:
            table.add_column(name, justify="right", overflow="fold")
        for name, cells in self.lines.items():
            table.add_row(Text(name), *(Text(cell) for cell in cells), style="bold" if name == POOLED else None)
        return table


def of_rows(
    title: str, columns: Columns, rows: Sequence[Row], *, corner: str = "surface", floors: bool = True
) -> Grid | None:
    """A line a row. Columns that no row has anything for are left out; None if none is left.

    ``floors``: whether the noise floor stands in a last column.
    """
    cells = {heading: [cell(row) for row in rows] for heading, cell in columns.items()}
    filled = {heading: values for heading, values in cells.items() if set(values) - {NOTHING}}
    if not filled:
        return None
    if floors:
        filled["noise\nfloor"] = [floor(row.noise_floor_pct) for row in rows]
    lines = {row.surface: [values[place] for values in filled.values()] for place, row in enumerate(rows)}
    return Grid(title=title, corner=corner, columns=list(filled), lines=lines)


def ladder(row: Row) -> Grid:
    """A line an arm that the run has: its level, and its gain over what it may be compared with."""
    arms = in_order(row.ne)
    compared = against([row])
    lines = {arm: [number(row.ne[arm]), *(gain(arm, other)(row) for other in compared.values())] for arm in arms}
    whose = f", {POOLED}" if row.surface == POOLED else ""
    title = f"Ladder of arms{whose}: gain in %, noise floor {floor(row.noise_floor_pct)}"
    return Grid(title=title, corner="arm", columns=["NE", *compared], lines=lines)


def against(rows: Sequence[Row]) -> dict[str, str]:
    """What a ladder compares arms with, by heading, as far as any row has such gains."""
    there = {other for row in rows for _, other in row.gains}
    return {heading: other for heading, other in _AGAINST.items() if other in there}


def level(arm: str) -> Cell:
    """The arm's normalised entropy."""
    return lambda row: number(row.ne.get(arm))


def gain(arm: str, other: str) -> Cell:
    """Value, mark and interval, each padded so that they line up below one another."""

    def cell(row: Row) -> str:
        one = row.gains.get((arm, other))
        if one is None:
            return NOTHING
        return f"{percent(one.gain_pct):>6} {mark(one)} {interval(one):>16}"

    return cell
