"""Figures of a run: gain over windows per surface, normalised entropy over windows per arm, a ladder of the arms.

And of studies: gain against what the teacher or its log is made to be, expert against the teacher's compute.

Small multiples, one panel per surface and one pooled; arms are told apart as :mod:`transfer.arm_style` says. Figures
are drawn without pyplot, so that nothing global is touched.
"""

import math
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from streaming import files
from transfer.arm_style import in_order, style
from transfer.curve import Curves
from transfer.gain import CONTROL, POOLED, TREATED, Gain
from transfer.report import Row
from transfer.studies import AXES, Studies

_FLOOR_LABEL = "noise floor (two control seeds)"
_COLUMNS = 4


def gain_over_windows(curves: Curves, *, arm: str = TREATED, against: str = CONTROL) -> Figure:
    """Gain of ``arm`` over ``against`` per window: a line, its 95 % band, and the noise floor shaded around zero."""
    figure, panels = _panels(list(curves))
    drawn = []
    for name, axes in panels.items():
        gains = {point.window: point.gains[arm, against] for point in curves[name] if (arm, against) in point.gains}
        _draw_gain(axes, gains, style(arm).colour)
        drawn += [one.gain_pct for one in gains.values()]
    if drawn:
        # Common limits from the lines, not from the bands: one wild window must not flatten the rest.
        low, high = min(0.0, float(np.quantile(drawn, 0.02))), max(0.0, float(np.quantile(drawn, 0.98)))
        margin = 0.35 * max(high - low, 0.1)
        for axes in panels.values():
            axes.set_ylim(low - margin, high + margin)
    title = f"Gain of {style(arm).label} over {style(against).label} in %, per window (above 0 is better)"
    _finish(figure, panels, title, "gain, %")
    return figure


def entropy_over_windows(curves: Curves) -> Figure:
    """Normalised entropy of every arm per window, a mean over seeds; lower is better."""
    figure, panels = _panels(list(curves))
    for name, axes in panels.items():
        present = {arm for point in curves[name] for arm in point.ne}
        for arm in in_order(present):
            how = style(arm)
            at, (values,) = _with_gaps({point.window: (point.ne[arm],) for point in curves[name] if arm in point.ne})
            axes.plot(
                at, values, color=how.colour, linestyle=how.line, marker=how.marker, label=how.label, lw=1.3, ms=4
            )
    _finish(figure, panels, "Normalised entropy per window (lower is better)", "NE")
    return figure


def ladder(rows: Sequence[Row], *, against: str = CONTROL) -> Figure:
    """Gain of every arm over ``against`` with its 95 % interval, a panel a surface; the noise floor is shaded."""
    arms = in_order(arm for row in rows for arm, other in row.gains if other == against)
    figure, panels = _panels([row.surface for row in rows], height=max(2.5, 0.7 + 0.17 * len(arms)))
    for row, axes in zip(rows, panels.values(), strict=True):
        axes.axvline(0.0, color="black", linestyle="--", lw=0.9, zorder=1)
        if row.noise_floor_pct is not None:
            axes.axvspan(
                -row.noise_floor_pct, row.noise_floor_pct, color="#999999", alpha=0.35, lw=0, label=_FLOOR_LABEL
            )
        for place, arm in enumerate(arms):
            one = row.gains.get((arm, against))
            if one is not None:
                colour = style(arm).colour
                axes.plot([one.lo, one.hi], [place, place], color=colour, lw=2, label="95 % interval")
                axes.plot(one.gain_pct, place, color=colour, marker="o", ms=5, linestyle="none", label="gain")
        axes.set_yticks(range(len(arms)), [style(arm).label for arm in arms])
        axes.set_ylim(len(arms) - 0.5, -0.5)
    _finish(figure, panels, f"Gain over {style(against).label} in %, by what is passed on", "", across="gain, %")
    for place, axes in enumerate(panels.values()):
        if place % _COLUMNS:
            axes.tick_params(labelleft=False)
    return figure


def drift_over_windows(drift: Mapping[str, Mapping[int, float]]) -> Figure:
    """How far embeddings moved from one snapshot to the next, by measure and window; windows with an alarm in red."""
    shown = {name: values for name, values in drift.items() if name != "alarm" and values}
    figure, panels = _panels(list(shown))
    alarms = [window for window, value in drift.get("alarm", {}).items() if value]
    for name, axes in panels.items():
        at, (values,) = _with_gaps({window: (value,) for window, value in shown[name].items()})
        axes.plot(at, values, color="#0072B2", lw=1.5, marker="o", ms=2.5)
        for window in alarms:
            axes.axvline(window, color="#D55E00", lw=1.2, label="alarm")
    _finish(figure, panels, "Drift of the embeddings on the probe, per snapshot", "")
    return figure


def gain_over_axes(studies: Studies) -> Figure:
    """Gain over the control against staleness, coverage, width and codec, a panel each, with 95 % intervals."""
    figure, panels = _panels(list(studies.axes), alike=False)
    floor = studies.noise_floor_pct
    for axis, axes in panels.items():
        places = studies.axes[axis]
        at = range(len(places))
        gain, low, high = (np.array(each) for each in zip(*((p.gain_pct, p.lo, p.hi) for p in places), strict=True))
        axes.axhline(0.0, color="black", linestyle="--", lw=0.9, zorder=1)
        if floor is not None:
            axes.axhspan(-floor, floor, color="#999999", alpha=0.35, lw=0, label=_FLOOR_LABEL)
        axes.vlines(at, low, high, color="#0072B2", lw=2, label="95 % interval")
        axes.plot(at, gain, color="#0072B2", marker="o", ms=5, lw=1, label="gain")
        axes.set_xticks(at, [place.at for place in places])
    _finish(figure, panels, "Gain over the control in %, by what the teacher and its log are", "gain, %", across="")
    for axis, axes in panels.items():
        axes.set_xlabel(AXES[axis], fontsize=9)
    return figure


def entropy_over_compute(studies: Studies) -> Figure:
    """Normalised entropy of teachers and of their experts against the teachers' compute; both axes are logarithmic."""
    figure, panels = _panels(["compute"])
    axes = panels["compute"]
    axes.set_title("")
    flops = np.array([teacher.flops for teacher in studies.teachers])
    expert = np.array([teacher.expert_ne for teacher in studies.teachers])
    axes.plot(
        flops, [teacher.fm_ne for teacher in studies.teachers], color="#009E73", marker="s", label="FM's own head"
    )
    axes.plot(flops, expert, color="#0072B2", marker="o", linestyle="none", label="expert")
    if studies.exponent is not None:
        level = np.exp(np.mean(np.log(expert) - studies.exponent * np.log(flops)))
        fitted = f"fit: NE ~ compute^{studies.exponent:.4f}, R² {studies.r2:.2f}"
        axes.plot(flops, level * flops**studies.exponent, color="#0072B2", linestyle=":", label=fitted)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    levels = np.linspace(*axes.get_ylim(), 5)
    _finish(figure, panels, "Expert against the teacher's compute", "NE", across="")
    axes.set_xticks(flops, [f"{one / 1e6:.1f}" for one in flops])
    axes.set_yticks(levels, [f"{one:.4f}" for one in levels])
    axes.set_xlabel("teacher's MFLOP for a candidate", fontsize=9)
    return figure


def to_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element to stand in a page: the same bytes for the same figure.

    Text stays text. What is black takes the colour of the text around it, and the ground is transparent, so that the
    figure is legible on a light page and on a dark one.
    """
    figure.patch.set_alpha(0.0)
    for axes in figure.axes:
        axes.patch.set_alpha(0.0)
    buffer = BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hypercast"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode()
    element = text[text.index("<svg") :]
    # A style's colours are matplotlib's own; what came from data is text, and text holds no '"' after an escape.
    coloured = re.sub(r'(style="[^"]*")', lambda found: found[1].replace("#000000", "currentColor"), element)
    return coloured.replace("<svg ", '<svg fill="currentColor" ', 1)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, whole or not at all."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    files.write_bytes(path, buffer.getvalue())
    return path


def _draw_gain(axes: Axes, gains: Mapping[int, Gain], colour: str) -> None:
    axes.axhline(0.0, color="black", linestyle="--", lw=0.9, zorder=1)
    if not gains:
        return
    at, (value, low, high, floor) = _with_gaps(
        {
            window: (one.gain_pct, one.lo, one.hi, math.nan if one.noise_floor_pct is None else one.noise_floor_pct)
            for window, one in gains.items()
        }
    )
    if not np.isnan(floor).all():
        axes.fill_between(at, -floor, floor, color="#999999", alpha=0.35, lw=0, label=_FLOOR_LABEL)
    axes.fill_between(at, low, high, color=colour, alpha=0.25, lw=0, label="95 % interval")
    axes.plot(at, value, color=colour, lw=1.5, marker="o", ms=2.5, label="gain")


def _with_gaps(points: Mapping[int, tuple[float, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Windows int [W] without holes and values float64 [K, W], nan in missing windows: lines must not bridge them."""
    at = np.arange(min(points), max(points) + 1)
    missing = (math.nan,) * len(next(iter(points.values())))
    return at, np.array([points.get(int(window), missing) for window in at], dtype=np.float64).T


def _panels(names: Sequence[str], *, alike: bool = True, height: float = 2.5) -> tuple[Figure, dict[str, Axes]]:
    rows = max(1, math.ceil(len(names) / _COLUMNS))
    # A single panel is as wide as two: title and legend are those of the whole figure.
    figure = Figure(figsize=(3.8 * min(_COLUMNS, max(2, len(names))), height * rows + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    panels: dict[str, Axes] = {}
    for place, name in enumerate(names):
        first = next(iter(panels.values()), None) if alike else None
        axes = figure.add_subplot(rows, min(_COLUMNS, len(names)), place + 1, sharex=first)
        # A name from data is shown as it is: '$' is no formula.
        weight = "bold" if name == POOLED else "normal"
        axes.set_title(name, fontsize=10, fontweight=weight, parse_math=False)
        panels[name] = axes
    return figure, panels


def _finish(figure: Figure, panels: Mapping[str, Axes], title: str, quantity: str, *, across: str = "window") -> None:
    figure.suptitle(title, fontsize=12)
    handles: dict[str, Artist] = {}
    for place, axes in enumerate(panels.values()):
        axes.grid(visible=True, color="#808080", alpha=0.25, lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if across:
            axes.xaxis.set_major_locator(MaxNLocator(integer=across == "window", nbins=7))
        axes.tick_params(labelsize=8)
        if place % _COLUMNS == 0:
            axes.set_ylabel(quantity, fontsize=9)
        if place + _COLUMNS >= len(panels):
            axes.set_xlabel(across, fontsize=9)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        lines = math.ceil(len(handles) / 3)
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.2 * max(0, lines - 2))  # what a long legend takes, panels keep
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=9, frameon=False
        )
