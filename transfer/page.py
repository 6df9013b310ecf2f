"""The report as one HTML page that needs nothing else: gains, ladder of arms, windows, calibration, parity, health.

Studies of what the gains depend on join it, where there are any.

Legible without scripts, on a light ground and on a dark one. Names from data are text and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streaming import files
from transfer import curve, figures, health, parity
from transfer.curve import Curves
from transfer.health import Health
from transfer.notation import LEGEND
from transfer.page_parts import document, figure, heading, paragraph, section
from transfer.page_sections import calibration, coverage, gains, ladder, on_studies, time_to_parity
from transfer.parity import Parity
from transfer.report import Report
from transfer.studies import Studies


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
            *(gains(each) for each in self.report.spans),
        ]
        if not self.report.spans:
            parts.append(paragraph(self.report.nothing_yet()))
        else:
            parts += [ladder(self.report.spans[-1]), self._windows(), calibration(self.report.spans[-1].rows)]
        if self.parities:
            parts.append(time_to_parity(self.parities))
        if self.studies is not None:
            parts.append(on_studies(self.studies))
        parts += [coverage(self.health), self._drift(), paragraph(LEGEND, dim=True)]
        return document(self.title, *(part for part in parts if part))

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
