"""The report and all that shows it, made again after something joined the predictions."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hypercast.cli.main import app
from hypercast.runtime import reference, reporting
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.ownership import OwnershipError, own
from hypercast.runtime.plan import run_lock
from streaming import config as configuration
from streaming.errors import ConfigError


@pytest.fixture
def run(copy_of_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run that logs to MLflow runs of its own."""
    for file in ("mlflow.db", "mlflow.json"):
        (copy_of_run / file).unlink()
    shutil.rmtree(copy_of_run / "mlartifacts")
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    return copy_of_run


def config(run: Path) -> PlatformConfig:
    return configuration.load(run / "platform.yaml", PlatformConfig).model_copy(update={"run": run})


def test_what_joins_a_run_shows_everywhere(run: Path) -> None:
    before = (run / "report.html").read_text()
    told = CliRunner().invoke(app, ["transfer", "trees", "--treated", "--run", str(run), "--json"])
    assert told.exit_code == 0, told.output
    late = json.loads(told.stdout)["spans"]["late"]["surfaces"]["all surfaces"]
    assert late["gains"]["lightgbm_vs_control"] and late["gains"]["blended_vs_lightgbm"]
    page = (run / "report.html").read_text()
    assert "LightGBM" in page and "LightGBM" not in before
    report = (run / "report.md").read_text()
    assert "| lightgbm |" in report and "| lightgbm_treated |" in report
    (root,) = (path for path in (run / "mlartifacts").glob("*/artifacts") if (path / "tables").is_dir())
    assert (root / "report" / "report.html").read_text() == page
    assert (root / "tables" / "report.md").read_text() == (run / "report.md").read_text()
    figures = {path.name for path in (root / "figures").iterdir()}
    assert figures == {"ladder.png", "gain_over_windows.png", "entropy_over_windows.png"}


def test_another_process_is_not_written_beside(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (reference, reporting):
        monkeypatch.setattr(module, "PATIENCE", 0.0)
    with own(run_lock(run), patience=0):
        with pytest.raises(OwnershipError, match="another process works in this folder"):
            reference.add_trees(run, progress=lambda message, share: None)
        with pytest.raises(OwnershipError, match="another process works in this folder"):
            reporting.republish(config(run))
    assert not (run / "reference").exists()


def test_any_task_is_reported(tiny_run: Path) -> None:
    first, other = (reporting.build(config(tiny_run), task=task) for task in (None, "multiple"))
    assert (first.task, other.task) == ("purchase", "multiple")
    assert first.spans[0].rows[0].ne != other.spans[0].rows[0].ne
    with pytest.raises(ConfigError, match=r"no task 'click'; .* has purchase, multiple"):
        reporting.build(config(tiny_run), task="click")
    told = CliRunner().invoke(app, ["transfer", "report", "--run", str(tiny_run), "--task", "multiple", "--json"])
    assert json.loads(told.stdout)["task"] == "multiple"
