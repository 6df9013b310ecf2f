"""Studies: read from flat figures, drawn, and refused where they are something else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streaming.errors import DataError
from transfer import figures, studies


def figures_of(names: dict[str, float]) -> dict[str, Any]:
    """Flat figures of runs with those gains; teachers' compute is the number in a size's name."""
    values: dict[str, Any] = {"base.width": 64, "base.codec": "float16", "noise_floor_pct": 0.1, "cores": 2}
    for name, gain in names.items():
        flops = 1e6 * (int(name.split("_")[1]) if name.startswith("size_") else 64)
        values |= {f"{name}.gain_pct": gain, f"{name}.gain_lo": gain - 0.2, f"{name}.gain_hi": gain + 0.2}
        values |= {f"{name}.ne": flops**-0.02, f"{name}.fm_ne": 0.9 * flops**-0.02}
        values |= {f"{name}.fm_flops_per_candidate": flops}
    return values


GAINS = {
    "base": 2.0,
    "staleness_8": 1.0,
    "staleness_1": 1.9,
    "coverage_50": 1.2,
    "width_16": 1.5,
    "width_128": 2.1,
    "codec_int4": 1.9,
    "dcn": 1.0,
    "size_24": 1.8,
    "size_96": 2.2,
}


def written(tmp_path: Path, values: Any) -> Path:
    path = tmp_path / "studies.json"
    path.write_text(json.dumps(values))
    return path


def test_places_stand_in_order_with_the_base_among_them(tmp_path: Path) -> None:
    read = studies.read(written(tmp_path, figures_of(GAINS) | {"power_exponent": -0.02, "power_r2": 1.0}))
    at = {axis: [(place.at, place.gain_pct) for place in places] for axis, places in read.axes.items()}
    assert at == {
        "staleness": [("0", 2.0), ("1", 1.9), ("8", 1.0)],
        "coverage": [("50", 1.2), ("100", 2.0)],
        "width": [("16", 1.5), ("64", 2.0), ("128", 2.1)],
        "codec": [("float16", 2.0), ("int4", 1.9)],
    }
    assert [teacher.flops for teacher in read.teachers] == [24e6, 64e6, 96e6]
    assert (read.exponent, read.r2, read.noise_floor_pct) == (-0.02, 1.0, 0.1)


def test_what_was_not_studied_is_not_drawn(tmp_path: Path) -> None:
    read = studies.read(written(tmp_path, figures_of({"base": 2.0, "staleness_1": 1.0})))
    assert list(read.axes) == ["staleness"]
    assert (read.teachers, read.exponent) == ([], None)
    assert len(figures.gain_over_axes(read).axes) == 1


def test_figures_show_gains_with_intervals_and_the_fitted_line(tmp_path: Path) -> None:
    read = studies.read(written(tmp_path, figures_of(GAINS) | {"power_exponent": -0.02, "power_r2": 1.0}))
    panels = figures.gain_over_axes(read).axes
    assert [axes.get_title() for axes in panels] == ["staleness", "coverage", "width", "codec"]
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["0", "1", "8"]
    np.testing.assert_allclose(np.asarray(panels[0].lines[-1].get_ydata(), dtype=float), [2.0, 1.9, 1.0])
    (compute,) = figures.entropy_over_compute(read).axes
    _, expert, fitted = compute.lines
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in (expert, fitted)]
    np.testing.assert_allclose(*drawn)  # these lie on a power law


@pytest.mark.parametrize(
    "values", [[1, 2], {"base.gain_pct": 1.0}, {"staleness_1.gain_pct": 1.0}, figures_of(GAINS) | {"base.ne": "much"}]
)
def test_something_else_is_refused(tmp_path: Path, values: Any) -> None:
    path = written(tmp_path, values)
    with pytest.raises(DataError, match="transfer_studies --json FILE"):
        studies.read(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing.json.*transfer_studies --json FILE"):
        studies.read(tmp_path / "missing.json")
