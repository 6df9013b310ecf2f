"""What a platform file may say, and what a run leaves in its folder and in MLflow."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from experts.arms import ARMS
from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.platform import Platform, import_if_absent
from hypercast.training import checkpoint
from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.errors import ConfigError
from transfer import predictions

SURFACES = ("surface_0", "surface_1")


def quiet(message: str, share: float) -> None:
    """No progress to show."""


def load(file: Path) -> PlatformConfig:
    return configuration.load(file, PlatformConfig)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("colour: red", r"key 'colour': Extra inputs are not permitted.*Allowed keys here: name, dataset, run"),
        ("log: {time_to_live: 3}", r"key 'log.time_to_live'.*Allowed keys here: fresh_for"),
        ("engine: slurm", r"key 'engine': Input should be 'local' or 'ray'; got 'slurm'"),
        ("windows: 0", r"key 'windows'.*greater than or equal to 1"),
        ("expert_jobs: many", r"key 'expert_jobs'.*valid integer.*got 'many'"),
        ("ray: {object_store_mib: 10}", r"key 'ray.object_store_mib'.*greater than or equal to 80; got 10"),
        ("ray: {restart: 3}", r"key 'ray.restart'.*Allowed keys here: address"),
        ("resources: {experts: {cpus: -1}}", r"key 'resources.experts.cpus'.*greater than or equal to 0"),
        ("lookahead: -1", r"key 'lookahead'.*greater than or equal to 0"),
        ("monitor: {tracking: [1]}", r"key 'monitor.tracking'.*valid string"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_path(
    extra: str, message: str, platform_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = platform_file(tmp_path / "run", extra)
    with pytest.raises(ConfigError, match=rf"(?s){file}: {message}"):
        load(file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("stack: {layers: 1}", "stack: {depth: 1}", r"key 'foundation.model.stack.depth'.*Allowed keys here: layers"),
        ("publisher: {keep: 2}", "publisher: {keep: 1}", r"key 'foundation.publisher.keep'.*equal to 2; got 1"),
        ("fusion: {width: 8}", "fusion: {dropout: 1}", r"key 'expert.fusion.dropout'.*less than 1"),
        ("{width: 16,", "{width: 14,", r"key 'foundation.model.width'.*multiple of 4; got 14"),
        ("stack: {layers: 1}", "stack: {heads: 3}", r"key 'foundation.model'.*16 must be a multiple of stack.heads 3"),
        ("seeds: [0]", "seeds: []", r"key 'seeds'.*at least 1 item"),
        ("name: tiny", "", r"key 'name': Field required"),
    ],
)
def test_a_mistake_deep_in_the_file_too(
    old: str, new: str, message: str, platform_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = platform_file(tmp_path / "run")
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load(file)


def test_a_run_folder_keeps_to_its_configuration(copy_of_run: Path, tiny_run: Path) -> None:
    kept = load(copy_of_run / "platform.yaml")
    assert kept == load(tiny_run.with_suffix(".yaml"))
    moved = kept.model_copy(update={"run": copy_of_run})
    for other in ({"seeds": [1]}, {"name": "other"}, {"threads": 2}):
        with pytest.raises(ConfigError, match=r"platform.yaml: this folder holds a run with another configuration"):
            Platform(moved.model_copy(update=other))
    assert load(copy_of_run / "platform.yaml") == kept
    for same in ({"engine": "ray"}, {"expert_jobs": 2}, {"windows": 1}, {}):
        Platform(moved.model_copy(update=same))
    assert load(copy_of_run / "platform.yaml") == moved


def test_windows_are_the_first_ones_and_more_may_follow(
    platform_file: Callable[..., Path], tiny_run: Path, tmp_path: Path, metrics_of
) -> None:
    config = load(platform_file(tmp_path / "run"))
    told: list[tuple[str, float]] = []
    first = Platform(config.model_copy(update={"windows": 2})).run(lambda message, share: told.append((message, share)))
    assert told == [("window 1", 0.5), ("window 2", 1.0)]
    assert predictions.windows(config.run, "surface_0") == [1, 2]
    assert [table.span.name for table in first.spans] == ["early"]
    assert checkpoint.load(config.run / "checkpoints" / "foundation").state["metrics"].keys() == {"1", "2"}
    whole = Platform(config.model_copy(update={"windows": 99})).run(quiet)
    assert predictions.windows(config.run, "surface_0") == [1, 2, 3, 4]
    assert [table.span.name for table in whole.spans] == ["early", "late"]
    assert whole.spans[0] == first.spans[0]
    assert (config.run / "report.md").read_text() == (tiny_run / "report.md").read_text()
    resumed, at_once = (
        {key: points for key, points in metrics_of(run).items() if not key[1].startswith("parity_")}
        for run in (config.run, tiny_run)  # parity is judged at the end of each run
    )
    assert resumed == at_once


def test_the_report_pools_the_spans_of_the_file(tiny_run: Path) -> None:
    platform = Platform(load(tiny_run / "platform.yaml"))
    seen, untouched = platform.report(), platform.report(untouched=True)
    for each in (seen, untouched):
        assert [(table.span.name, table.span.first, table.span.last, table.windows) for table in each.spans] == [
            ("early", 1, 2, 2),
            ("late", 3, 4, 2),
        ]
        for table in each.spans:
            assert [row.surface for row in table.rows] == [*SURFACES, "all surfaces"]
            assert table.rows[2].rows == table.rows[0].rows + table.rows[1].rows > 0
            assert set(table.rows[0].ne) == {*ARMS, "fm_head"}
    # 16 users' 2 requests of 6 candidates in each of 2 windows; every user is in one of the two reports.
    for of_seen, of_untouched in zip(seen.spans, untouched.spans, strict=True):
        assert of_seen.rows[2].rows + of_untouched.rows[2].rows == 16 * 2 * 6 * 2
        assert of_seen.rows[2].users + of_untouched.rows[2].users == 16
    assert seen.to_markdown() == (tiny_run / "report.md").read_text()


def test_experts_with_label_rates_and_replay_run_to_the_end(platform_file: Callable[..., Path], tmp_path: Path) -> None:
    run, arms = tmp_path / "run", ["control", "treated"]
    values = configuration.load(platform_file(run), PlatformConfig).model_dump(mode="json")
    values["expert"] |= {"arms": arms, "label_rates": {}, "replay": {"windows": 1}}
    config = PlatformConfig.model_validate(values)
    Platform(config).run(quiet)
    client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    for surface in SURFACES:
        (folder,) = (run / "experts" / surface).glob("window=*")
        assert {path.name for path in folder.iterdir()} == {*arms, "label_rates.safetensors"}
        versions = client.search_model_versions(f"name = '{config.name}-{surface}'")
        assert {version.tags["arm"] for version in versions} == {*arms}


def test_mlflow_has_a_run_of_the_platform_and_one_of_everything_that_predicts(
    tiny_run: Path, small_dataset: Dataset, metrics_of
) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{tiny_run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    children = {"fm", *(f"{surface}/{arm}/seed0" for surface in SURFACES for arm in ARMS)}
    assert runs.keys() == {"platform", *children}
    assert {runs[name].data.tags["mlflow.parentRunId"] for name in children} == {runs["platform"].info.run_id}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    ends = [(window.index, window.end // 1000) for window in small_dataset.windows]
    histories = metrics_of(tiny_run)
    wanted = {
        "platform": ["gain_pct/treated_vs_control/all_surfaces", "gain_lo/tae_vs_control_matched/surface_1"]
        + ["multiple/gain_pct/fm_head_vs_control/surface_0", "teacher/age_hours/surface_1"]
        + [f"coverage/{status}/{surface}" for status in ("fresh", "stale", "miss") for surface in SURFACES],
        "fm": ["train_loss", "published_rows", "ne/surface_0", "auc/surface_1", "tables/items/item_id/occupancy"],
        **{name: ["ne", "ne_pop", "auc", "calibration", "train_loss"] for name in children - {"fm"}},
    }
    for name, metrics in wanted.items():
        for metric in metrics:
            assert [(step, time) for step, time, _ in histories[name, metric]] == ends, (name, metric)
    first, *later = (value for _, _, value in histories["fm", "train_loss"])
    assert later[-1] < first
    assert {value for _, _, value in histories["platform", "coverage/miss/surface_0"]} == {0.0}
    assert all(value > 0 for _, _, value in histories["platform", "teacher/age_hours/surface_0"])
    for surface in (*SURFACES, "all_surfaces"):
        [(step, _, reached)] = histories["platform", f"parity_reached/{surface}"]
        assert step == 4 and (("platform", f"parity_windows/{surface}") in histories) == bool(reached)
    params = runs["platform"].data.params
    assert (params["foundation.model.width"], params["seeds"], params["spans.late"]) == ("16", "[0]", "[3, 4]")


def test_tables_figures_and_configuration_are_artifacts(tiny_run: Path) -> None:
    (root,) = (path for path in (tiny_run / "mlartifacts").glob("*/artifacts") if (path / "tables").is_dir())
    assert {str(path.relative_to(root)) for path in root.rglob("*.*")} == {
        "config/platform.yaml",
        "figures/entropy_over_windows.png",
        "figures/gain_over_windows.png",
        "figures/ladder.png",
        "report/report.html",
        *(f"tables/report.{kind}" for kind in ("json", "md")),
    }
    assert (root / "report" / "report.html").read_bytes() == (tiny_run / "report.html").read_bytes()
    report = Platform(load(tiny_run / "platform.yaml")).report()
    assert json.loads((root / "tables" / "report.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    assert load(root / "config" / "platform.yaml") == load(tiny_run / "platform.yaml")


def test_the_newest_snapshot_is_the_registered_model_called_current(tiny_run: Path, small_dataset: Dataset) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{tiny_run / 'mlflow.db'}")
    snapshots = Registry(tiny_run / "registry").list("FM")
    assert [snapshot.name for snapshot in snapshots] == ["FM@0004", "FM@0005"]  # keep: 2
    assert snapshots[-1].watermark == small_dataset.windows[-1].end
    current = client.get_model_version_by_alias("tiny-FM", "current")
    assert current.source == snapshots[-1].path.resolve().as_uri()
    assert current.tags["hypercast.snapshot"] == "FM@0005"
    assert current.tags["watermark"] == str(snapshots[-1].watermark)
    assert len(client.search_model_versions("name = 'tiny-FM'")) == 2


def test_a_data_set_that_is_there_is_not_imported(small_dataset: Dataset, tiny_run: Path) -> None:
    assert import_if_absent(load(tiny_run / "platform.yaml").dataset, quiet) == small_dataset.path
