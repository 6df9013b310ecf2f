"""What is logged of a window: gains beside their floor, eta, cohorts, every task."""

import re
from pathlib import Path

import numpy as np
import pytest

from hypercast.runtime import window_metrics
from streaming.dataset import Dataset
from tests.transfer.conftest import _make_table as make_table
from transfer import cohort, gain, predictions, sums
from transfer.eta import etas

SAID = {"coverage/fresh": 1.0, "teacher/age_hours": 3.0, "tables/x": 0.5, "control.seed0/train_loss": 0.4, "rows": 9.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two surfaces, one of which knows cohorts."""
    folder = tmp_path_factory.mktemp("metrics")
    for seed, surface in enumerate(("home feed", "mailer")):
        predictions.write(folder, surface=surface, window=1, table=make_table(seed=seed))
    rows = len(predictions.read(folder, surface="mailer", window=1))
    few = np.arange(rows) % 3 == 0
    cohort.write(folder, surface="mailer", window=1, members={"user.income=50-74K": few, "user.income=(none)": ~few})
    return folder


def test_gains_stand_beside_their_noise_floor_and_eta(run: Path) -> None:
    learned = {"home feed": SAID, "mailer": SAID}
    metrics = window_metrics.of_window(run, window=1, tasks=["buy"], learned=learned)
    seen = {name: sums.of_window(run, surface=name, window=1, task="buy").select(untouched=False) for name in learned}
    for surface, each in {**seen, gain.POOLED: gain.pooled(seen)}.items():
        place = surface.replace(" ", "_")
        platform = metrics["platform"]
        assert platform[f"noise_floor_pct/{place}"] == gain.noise_floor(each) > 0
        for one in gain.gains(each, surface=surface, span="x", replicates=200):
            key = f"{one.arm}_vs_{one.against}/{place}"
            assert (platform[f"gain_lo/{key}"], platform[f"gain_hi/{key}"]) == (one.lo, one.hi)
        assert {arm: platform[f"eta/{arm}/{place}"] for arm in etas(each)} == etas(each) != {}
    assert (
        metrics["platform"]["teacher/age_hours/mailer"] == 3.0 and metrics["platform"]["coverage/fresh/mailer"] == 1.0
    )
    assert "rows/mailer" not in metrics["platform"]
    assert metrics["mailer/control/seed0"]["train_loss"] == 0.4
    assert metrics["fm"]["ne/mailer"] > 0 and "mailer/fm_head/seed0" not in metrics


def test_gains_of_cohorts_by_name(run: Path) -> None:
    platform = window_metrics.of_window(run, window=1, tasks=["buy"], learned={"mailer": SAID})["platform"]
    few = cohort.of_windows(run, surface="mailer", windows=[1], task="buy")["user.income=50-74K"].select(
        untouched=False
    )
    [one] = gain.gains(few, surface="mailer", span="x", pairs=[("treated", "control")], replicates=50)
    place = "mailer/user.income_50-74K"
    assert platform[f"gain_pct/treated_vs_control/{place}"] == pytest.approx(one.gain_pct)
    assert platform[f"noise_floor_pct/{place}"] == one.noise_floor_pct
    assert "gain_lo/treated_vs_control/mailer/user.income__none_" in platform
    assert all(re.fullmatch(r"[/\w.\- :]+", name) for name in platform)  # what MLflow takes


def test_every_task_is_judged(tiny_run: Path, small_dataset: Dataset) -> None:
    first, *further = (task.name for task in small_dataset.config.tasks)
    assert further
    metrics = window_metrics.of_window(tiny_run, window=4, tasks=[first, *further], learned={"surface_0": SAID})
    of_task = sums.of_window(tiny_run, surface="surface_0", window=4, task=further[0]).select(untouched=False)
    for column, values in of_task.metrics().items():
        fm = column.arm == gain.FM_HEAD
        told = metrics["fm" if fm else f"surface_0/{column.arm}/seed{column.seed}"]
        for name in ("ne", "auc", "calibration"):
            assert told[f"{further[0]}/{name}" + ("/surface_0" if fm else "")] == values[name]
            assert f"{name}/surface_0" in told or name in told
    assert f"{further[0]}/gain_pct/treated_vs_control/all_surfaces" in metrics["platform"]
