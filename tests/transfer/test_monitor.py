import json
import logging
import math
import os
from pathlib import Path

import pytest
from mlflow import MlflowClient

from streaming import config
from streaming.errors import ConfigError
from transfer import figures, predictions, report
from transfer.curve import curves
from transfer.gain import Span
from transfer.monitor import FOUNDATION, PLATFORM, Monitor, expert_key

EXPERT = expert_key("home", "treated", 0)
HOUR = 3_600_000_000


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty MLflow store: its migrations take seconds, so they are run once and copied."""
    run = tmp_path_factory.mktemp("database")
    Monitor.Config(tracking=f"sqlite:///{run}/mlflow.db").build(run=run, platform="empty").close()
    return (run / "mlflow.db").read_bytes()


@pytest.fixture
def run(tmp_path: Path, database: bytes) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(database)
    return folder


def opened(run: Path) -> Monitor:
    return Monitor.Config().build(run=run, platform="shop")


def client(run: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{run}/mlflow.db")


def ids(run: Path) -> dict[str, str]:
    state = json.loads((run / "mlflow.json").read_text())
    return {key: each["run_id"] for key, each in state["runs"].items()}


def history(run: Path, key: str, metric: str) -> list[tuple[int, int, float]]:
    points = client(run).get_metric_history(ids(run)[key], metric)
    return sorted((point.step, point.timestamp, point.value) for point in points)


def log(target: Monitor, window: int, value: float = 0.5) -> None:
    metrics = {PLATFORM: {"gain_pct/home": value}, FOUNDATION: {"ne": value}, EXPERT: {"ne": value, "auc": value}}
    target.log_window(window=window, end=window * HOUR, metrics=metrics)


def test_children_hang_on_the_parent_and_steps_are_windows(run: Path) -> None:
    with opened(run) as target:
        log(target, 7)
        log(target, 8, 0.25)
    assert history(run, EXPERT, "ne") == [(7, 7 * HOUR // 1000, 0.5), (8, 8 * HOUR // 1000, 0.25)]
    assert history(run, PLATFORM, "gain_pct/home")[0][2] == 0.5
    child = client(run).get_run(ids(run)[EXPERT])
    assert child.data.tags["mlflow.parentRunId"] == ids(run)[PLATFORM]
    assert child.info.run_name == EXPERT
    assert child.info.status == "FINISHED"
    assert client(run).get_experiment(child.info.experiment_id).name == "shop"


def test_resuming_goes_on_in_the_same_runs_without_duplicates(run: Path) -> None:
    first = opened(run)
    log(first, 1)
    log(first, 2)
    before = ids(run)
    resumed = opened(run)  # the first was killed: never closed
    log(resumed, 2, 0.75)  # replayed, and not to the last digit
    log(resumed, 3)
    resumed.close()
    assert ids(run) == before
    assert [(step, value) for step, _, value in history(run, EXPERT, "ne")] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert len(client(run).search_runs([client(run).get_run(before[EXPERT]).info.experiment_id])) == 3


def test_killed_between_logging_and_remembering(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(run)
    log(first, 1)
    real, calls = first._client.log_batch, []

    def die_after_two(*args, **kwargs) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        real(*args, **kwargs)

    monkeypatch.setattr(first._client, "log_batch", die_after_two)
    with pytest.raises(KeyboardInterrupt):
        log(first, 2)
    resumed = opened(run)
    log(resumed, 2, 0.75)
    assert [value for _, _, value in history(run, FOUNDATION, "ne")] == [0.5, 0.5]  # was there: kept
    assert [value for _, _, value in history(run, EXPERT, "ne")] == [0.5, 0.75]  # was not: logged now


def test_killed_after_creating_a_run_leaves_no_orphan(run: Path) -> None:
    log(opened(run), 1)
    before = ids(run)
    state = json.loads((run / "mlflow.json").read_text())
    state["runs"] = {}
    (run / "mlflow.json").write_text(json.dumps(state))
    log(opened(run), 2)
    assert ids(run) == before


def test_status_while_running_and_after(run: Path) -> None:
    def status() -> set[str]:
        return {client(run).get_run(each).info.status for each in ids(run).values()}

    target = opened(run)
    log(target, 1)
    assert status() == {"RUNNING"}
    target.close()
    assert status() == {"FINISHED"}
    resumed = opened(run)
    assert status() == {"RUNNING"}
    with pytest.raises(ZeroDivisionError), resumed:
        _ = 1 / 0
    assert status() == {"FAILED"}


def test_values_that_are_not_finite_are_skipped_and_counted(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = opened(run)
    metrics = {EXPERT: {"ne": math.nan, "auc": math.inf, "rows": 3.0}}
    with caplog.at_level(logging.WARNING):
        target.log_window(window=1, end=HOUR, metrics=metrics)
    target.log_window(window=1, end=HOUR, metrics=metrics)
    assert target.skipped == 2
    assert "ne, auc" in caplog.text
    stored = client(run).get_run(ids(run)[EXPERT])
    assert stored.data.metrics == {"rows": 3.0}
    assert stored.data.tags["hypercast.skipped_not_finite"] == "2"
    assert opened(run).skipped == 2


def test_an_alarm_is_told_once(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = opened(run)
    for window, alarm in ((1, 0.0), (2, 1.0), (2, 1.0), (3, 0.0)):
        drift = {"drift/centroid": 1.5 * window, "drift/alarm": alarm}
        target.log_window(window=window, end=window * HOUR, metrics={FOUNDATION: drift})
    said = [record.getMessage() for record in caplog.records if "drifted" in record.getMessage()]
    assert len(said) == 1 and "window 2: " in said[0] and "drift/centroid 3" in said[0]
    assert [value for _, _, value in history(run, FOUNDATION, "drift/alarm")] == [0.0, 1.0, 0.0]


def test_more_metrics_than_one_call_takes(run: Path) -> None:
    target = opened(run)
    target.log_window(window=1, end=HOUR, metrics={FOUNDATION: {f"m{i}": float(i) for i in range(1500)}})
    assert len(client(run).get_run(ids(run)[FOUNDATION]).data.metrics) == 1500


def test_parameters_are_flat_and_keep_their_first_value(run: Path) -> None:
    target = opened(run)
    target.log_params({"fm": {"layers": 4, "dims": [8, 16]}, "name": "shop", **{f"p{i}": i for i in range(150)}})
    target.log_params({"fm": {"layers": 5}, "new": True})
    data = client(run).get_run(ids(run)[PLATFORM]).data
    assert (data.params["fm.layers"], data.params["fm.dims"], data.params["name"]) == ("4", "[8, 16]", "shop")
    assert data.params["new"] == "true"
    assert len(data.params) == 154
    assert {name: value for name, value in data.tags.items() if name.startswith("resumed_with")} == {
        "resumed_with.fm.layers": "5"
    }


def test_artifacts_lie_in_the_run_folder(run: Path, make_table) -> None:
    predictions.write(run, surface="home", window=1, table=make_table())
    shown = report.build(run, task="buy", spans=[Span("all", 0, 9)], replicates=50)
    figure = figures.gain_over_windows(curves(run, task="buy", replicates=50))
    target = opened(run)
    for _ in range(2):
        target.log_report(shown)
        target.log_figure(figure, name="gain")
        target.log_config(Monitor.Config(tracking="x"))
    root = next((run / "mlartifacts").glob("*/artifacts"))
    assert (root / "tables" / "report.md").read_text() == shown.to_markdown()
    assert json.loads((root / "tables" / "report.json").read_text()) == shown.to_dict()
    assert (root / "figures" / "gain.png").stat().st_size > 1000
    assert config.load(root / "config" / "platform.yaml", Monitor.Config) == Monitor.Config(tracking="x")


def test_snapshots_are_registered_once(run: Path, tmp_path: Path) -> None:
    snapshots = [tmp_path / "FM@0001", tmp_path / "FM@0002"]
    for path in snapshots:
        path.mkdir()
    target = opened(run)

    def register(place: int, alias: str | None) -> str:
        path = snapshots[place]
        return target.register_snapshot(path, name="shop.FM", snapshot=path.name, info={"watermark": 5}, alias=alias)

    assert [register(0, "serving"), register(1, None), register(0, "serving")] == ["1", "2", "1"]
    target = opened(run)
    assert register(1, "serving") == "2"
    found = client(run).get_model_version_by_alias("shop.FM", "serving")
    assert (found.version, found.source) == (2, snapshots[1].as_uri())
    assert found.tags["hypercast.snapshot"] == "FM@0002"
    assert found.tags["watermark"] == "5"
    assert found.run_id == ids(run)[FOUNDATION]
    assert len(client(run).search_model_versions("name = 'shop.FM'")) == 2
    with pytest.raises(ConfigError, match="not a folder"):
        target.register_snapshot(tmp_path / "none", name="shop.FM", snapshot="FM@0003", info={})


def test_another_store_is_refused_for_the_same_run(run: Path, tmp_path: Path) -> None:
    opened(run)
    with pytest.raises(ConfigError, match="this run logs to 'run folder'"):
        Monitor.Config(tracking=f"sqlite:///{tmp_path}/other.db").build(run=run, platform="shop")


def test_errors_say_what_to_do(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match=r"monitor\.tracking: MLflow cannot open"):
        Monitor.Config(tracking="sqlite:////proc/none/mlflow.db").build(run=tmp_path / "a", platform="shop")
    assert not (tmp_path / "a" / "mlflow.json").exists()  # so that a mended URI is accepted
    (run / "mlflow.json").write_text("{}")
    with pytest.raises(ConfigError, match="Move the file away"):
        opened(run)


def test_deleted_experiment(run: Path) -> None:
    target = opened(run)
    client(run).delete_experiment(target._experiment)
    with pytest.raises(ConfigError, match="was deleted"):
        opened(run)


def test_telemetry_is_off(run: Path) -> None:
    from mlflow.telemetry import get_telemetry_client

    opened(run)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert get_telemetry_client() is None
