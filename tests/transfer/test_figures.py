from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from transfer import figures, gain, predictions
from transfer.curve import Curves, curves


@pytest.fixture
def run(tmp_path: Path, make_table) -> Path:
    for window in (1, 2, 5):
        predictions.write(tmp_path, surface="home", window=window, table=make_table(seed=window))
    predictions.write(tmp_path, surface="mailer", window=2, table=make_table(seed=7, seeds=1))
    return tmp_path


@pytest.fixture
def drawn(run: Path) -> Curves:
    return curves(run, task="buy", replicates=50)


def test_curves_have_a_point_per_window(drawn: Curves) -> None:
    assert {name: [point.window for point in points] for name, points in drawn.items()} == {
        "home": [1, 2, 5],
        "mailer": [2],
        gain.POOLED: [1, 2, 5],
    }
    point = drawn["home"][0]
    assert point.gains["treated", "control"].gain_pct > 0
    assert point.ne["treated"] < point.ne["control"]


def test_gain_figure_has_a_panel_per_surface_and_breaks_at_missing_windows(drawn: Curves) -> None:
    figure = figures.gain_over_windows(drawn)
    assert [axes.get_title() for axes in figure.axes] == ["home", "mailer", gain.POOLED]
    zero, line = figure.axes[0].get_lines()
    assert zero.get_linestyle() == "--"
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(np.isnan(np.asarray(line.get_ydata(), dtype=float)), [0, 0, 1, 1, 0])


def test_figures_are_saved_as_images(drawn: Curves, tmp_path: Path) -> None:
    for name, figure in (("gain", figures.gain_over_windows(drawn)), ("ne", figures.entropy_over_windows(drawn))):
        image = imread(figures.save(figure, tmp_path / f"{name}.png"))
        assert image.std() > 0.01


def test_arms_are_told_apart(drawn: Curves) -> None:
    lines = figures.entropy_over_windows(drawn).axes[0].get_lines()
    assert len(lines) == 6
    assert len({line.get_color() for line in lines}) == 6


def test_no_predictions_yet(tmp_path: Path) -> None:
    empty = curves(tmp_path, task="buy")
    assert figures.save(figures.gain_over_windows(empty), tmp_path / "gain.png").exists()
    assert figures.save(figures.entropy_over_windows(empty), tmp_path / "ne.png").exists()
