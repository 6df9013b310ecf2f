"""The flat figures: against the machinery they come from, and on a run too small to mean anything."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import study_runs, transfer, transfer_sums
from benchmarks.options import Options, Values
from hypercast.runtime.config import PlatformConfig
from streaming import config as configuration
from streaming.errors import DataError
from streaming.importers.synthetic import Synthetic
from streaming.workspace import Workspace
from tests.benchmarks.test_transfer_studies import tiny
from tests.transfer.conftest import _make_table as make_table
from transfer import gain, predictions, sums
from transfer.gain import Span
from transfer.predictions import Column, prediction_table
from transfer.reference.boosting import LIGHTGBM

NOISE = {
    "control": 1.0,
    "control_matched": 0.9,
    "kd": 0.8,
    "tae": 0.5,
    "tae_history": 0.7,
    "treated": 0.3,
    "fm_head": 0.6,
    "lightgbm": 0.75,
}
SURFACES = ["home", "search"]
FIGURES = [("", 3, 4, False), ("cold.", 1, 1, False), ("unseen.", 3, 4, True)]
SPANS = {"choose": Span("choose", 1, 2), "cold": Span("cold", 1, 1), "steady": Span("steady", 3, 4)}


def without_times(values: Values) -> Values:
    return {key: value for key, value in values.items() if not key.endswith("_seconds")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two surfaces, four windows, three seeds; LightGBM with one."""
    folder = tmp_path_factory.mktemp("work") / "run"
    for s, surface in enumerate(SURFACES):
        for window in (1, 2, 3, 4):
            table = make_table(seed=10 * s + window, noise=NOISE, seeds=3, requests=120)
            table = table.drop_columns([Column("buy", LIGHTGBM, seed).name for seed in (1, 2)])
            predictions.write(folder, surface=surface, window=window, table=table)
    (folder / transfer.FLOPS_FILE).write_text(json.dumps({"fm": 900.0, "control": 10.0, "treated": 20.0}))
    return folder


@pytest.fixture(scope="module")
def values(run: Path) -> dict[str, float | str]:
    return transfer.figures([run], task="buy", surfaces=SURFACES, replicates=200, **SPANS)


def test_modes_are_the_best_of_their_kind(values) -> None:
    assert (values["tae_best_mode"], values["expert_best_mode"]) == ("tae", "treated")
    assert (values["seeds"], values["fm_flops_per_candidate"], values["expert_flops_per_candidate"]) == (3, 900.0, 20.0)


def test_modes_are_chosen_on_early_windows_alone(tmp_path: Path) -> None:
    for window in (1, 2, 3, 4):
        noise = {"control": 1.0, "tae": 0.2, "tae_history": 0.9} | ({"tae": 3.0} if window > 2 else {})
        predictions.write(tmp_path, surface="home", window=window, table=make_table(seed=window, noise=noise))
    values = transfer.figures([tmp_path], task="buy", surfaces=["home"], replicates=50, **SPANS)
    assert values["tae_best_mode"] == "tae"
    assert values["home.tae_best.ne"] == values["home.tae.ne"] > values["home.tae_history.ne"]


@pytest.mark.parametrize(
    ("prefix", "first", "last", "untouched"), [("", 3, 4, False), ("cold.", 1, 1, False), ("unseen.", 3, 4, True)]
)
def test_figures_are_those_of_the_gains(values, run: Path, prefix: str, first: int, last: int, untouched: bool) -> None:
    windows = [sums.of_window(run, surface="home", window=w, task="buy") for w in range(first, last + 1)]
    own = sums.combine(windows).select(untouched=untouched)
    assert values[f"{prefix}home.tae.ne"] == pytest.approx(own.mean_by_arm("ne")["tae"])
    assert values[f"{prefix}home.tae_best.auc"] == pytest.approx(own.mean_by_arm("auc")["tae"])
    assert values[f"{prefix}home.lightgbm.ne"] == pytest.approx(own.mean_by_arm("ne")["lightgbm"])
    [one] = gain.gains(own, surface="home", span="x", pairs=[("tae", "control")], replicates=50)
    key = f"{prefix}home.tae.gain_"
    assert values[f"{key}pct"] == pytest.approx(one.gain_pct)
    assert values[f"{key}lo"] < values[f"{key}pct"] < values[f"{key}hi"]
    ne = {arm: values[f"{prefix}home.{arm}.ne"] for arm in ("treated", "lightgbm", "fm_head")}
    for other in ("lightgbm", "fm_head"):
        fall = 100 * (ne[other] - ne["treated"]) / ne[other]
        assert values[f"{prefix}home.expert_best_vs_{other}_pct"] == pytest.approx(fall)
    assert f"{prefix}home.tae_best_vs_kd_lo" in values and f"{prefix}home.tae_best_vs_aux_head_lo" not in values


def test_surfaces_ahead_are_counted(values) -> None:
    los = [values[f"{surface}.expert_best_vs_lightgbm_lo"] for surface in SURFACES]
    assert values["expert_best_vs_lightgbm_surfaces_ahead"] == sum(lo > 0 for lo in los) == 2
    assert values["tae_best_vs_control_surfaces_ahead"] == 2
    assert 0 < values["noise_floor_pct"] < 20


def test_every_figure_is_a_number_or_a_mode(values) -> None:
    words = {key for key, value in values.items() if isinstance(value, str)}
    assert words == {"tae_best_mode", "expert_best_mode"}
    assert json.loads(json.dumps(values)) == values


def test_runs_with_other_seeds_add_up(tmp_path: Path) -> None:
    for number in (0, 1):
        table = make_table(seed=1, noise=NOISE, seeds=2, requests=120)
        columns = [c for c in predictions.columns_of(table.column_names, task="buy") if c.arm != "fm_head" and c.seed]
        table = table.drop_columns([column.name for column in columns])  # one seed a run
        predictions.write(tmp_path / f"run{number}", surface="home", window=1, table=table)
    runs = [tmp_path / "run0", tmp_path / "run1"]
    both = transfer_sums.read(runs, surface="home", span=Span("x", 1, 1), task="buy", untouched=False)
    assert sorted(column.seed for column in both.columns if column.arm == "control") == [0, 1000]
    [one] = gain.gains(both, surface="home", span="x", pairs=[("treated", "fm_head")], replicates=50)
    assert one.seeds == 2
    other = make_table(seed=2, noise=NOISE, seeds=2, requests=120)
    predictions.write(tmp_path / "run1", surface="home", window=1, table=other)
    with pytest.raises(DataError, match="of other rows"):
        transfer_sums.read(runs, surface="home", span=Span("x", 1, 1), task="buy", untouched=False)


def test_an_arm_there_is_once_is_paired_with_every_seed(run: Path) -> None:
    each = transfer_sums.read([run], surface="home", span=Span("x", 1, 4), task="buy", untouched=False)
    for arm in ("lightgbm", "fm_head"):
        [one] = gain.gains(each, surface="home", span="x", pairs=[("treated", arm)], replicates=50)
        assert one.seeds == 3


def test_measures_a_run_and_adds_lightgbm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Synthetic.Config(users=12, items=24, windows=4, surfaces=2).build(tmp_path / "data")
    workspace, random, work = Workspace(dataset), np.random.default_rng(0), tmp_path / "work"
    for window in dataset.windows:
        for index, surface in enumerate(dataset.config.surfaces):
            own = workspace.requests(window.index).on_surface(index)
            arms = [("control", 0), ("control", 1), ("tae", 0), ("tae", 1), ("fm_head", 0)]
            said = {Column("purchase", *arm): random.uniform(0.1, 0.5, len(own.item)) for arm in arms}
            table = prediction_table(own, said, tasks=workspace.inputs.tasks)
            predictions.write(work, surface=surface, window=window.index, table=table)
    (work / "platform.yaml").write_text(f"{{name: tiny, dataset: {{path: {dataset.path}}}, run: {work}}}\n")
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    for name, span in SPANS.items():
        monkeypatch.setattr(transfer, name.upper(), span)
    values = transfer.measure(Options(data=dataset.path, work=work))
    assert values["surface_0.lightgbm.ne"] > 0 and values["surface_1.expert_best_vs_lightgbm_lo"] is not None
    assert (work / "reference" / "lightgbm" / "predictions" / "surface_0").is_dir()
    assert without_times(transfer.measure(Options(data=dataset.path, work=work))) == without_times(values)


@pytest.mark.slow
def test_runs_that_are_not_there_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Synthetic.Config(users=12, items=24, windows=4, surfaces=2).build(tmp_path / "data")
    base = tiny(dataset.path, tmp_path)
    rated = study_runs.changed(base, {"expert.replay": {"windows": 1}, "expert.label_rates": {}})
    monkeypatch.setattr(study_runs, "shipped", lambda data, name="complete_journey": rated if "rates" in name else base)
    monkeypatch.setattr(transfer, "SEEDS", (0, 1))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    for name, span in SPANS.items():
        monkeypatch.setattr(transfer, name.upper(), span)
    work = tmp_path / "work"
    values = transfer.measure(Options(work=work))
    assert (values["seeds"], values["tae_best_mode"]) == (2, "tae_aux_head_adapter")
    assert {"surface_0.blended_vs_lightgbm_lo", "surface_1.expert_best_vs_fm_head_lo"} <= values.keys()
    assert (values["rated.seeds"], values["rated.surface_0.fm_head.ne"]) == (2, values["surface_0.fm_head.ne"])
    assert values["rated.surface_0.control.ne"] != values["surface_0.control.ne"]
    files = {file.parent.name: configuration.load(file, PlatformConfig) for file in work.glob("*/platform.yaml")}
    assert {name: (file.seeds, file.expert.replay.windows) for name, file in files.items()} == {
        "seed0": ([0], 0),
        "seed0_rated": ([0], 1),
        "seed1": ([1], 0),
        "seed1_rated": ([1], 1),
    }
    predicted = sorted(work.rglob("*.parquet"))
    before = [file.stat().st_mtime_ns for file in predicted]
    assert without_times(transfer.measure(Options(work=work))) == without_times(values)
    assert [file.stat().st_mtime_ns for file in predicted] == before
