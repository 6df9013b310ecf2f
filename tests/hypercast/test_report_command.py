"""``hypercast transfer report --html``: one page of a run, beside what is printed."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from hypercast.cli import main as cli
from streaming.errors import ConfigError


def test_the_page_of_a_run(copy_of_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "pages" / "report.html"
    command = ["transfer", "report", "--run", str(copy_of_run), "--html", str(file)]
    printed = CliRunner().invoke(cli.app, command, catch_exceptions=False)
    assert printed.exit_code == 0, printed.output
    assert f"The page: {file}" in printed.stdout
    text = file.read_text(encoding="utf-8")
    for part in ("<h1>tiny</h1>", "late (windows 3 to 4, 2 present)", "Coverage and staleness", "Ladder of arms"):
        assert part in text
    assert text.count(">100.0 %<") == 2  # fresh on both surfaces: the runtime notes coverage where the page looks
    quiet = CliRunner().invoke(cli.app, [*command, "--json"], catch_exceptions=False)
    assert json.loads(quiet.stdout)["task"] == "purchase"
    assert file.read_text(encoding="utf-8") == text
    client = MlflowClient(tracking_uri=f"sqlite:///{copy_of_run / 'mlflow.db'}")
    of_platform = json.loads((copy_of_run / "mlflow.json").read_text())["runs"]["platform"]["run_id"]
    kept = Path(client.download_artifacts(of_platform, "report/report.html", str(tmp_path)))
    assert kept.read_text(encoding="utf-8") == text


def test_studies_join_the_page(copy_of_run: Path, tmp_path: Path) -> None:
    file, figures = tmp_path / "page.html", tmp_path / "studies.json"
    values = {"base.gain_pct": 2.0, "base.gain_lo": 1.5, "base.gain_hi": 2.5, "noise_floor_pct": 0.1}
    values |= {"staleness_4.gain_pct": 1.25, "staleness_4.gain_lo": 0.5, "staleness_4.gain_hi": 2.0}
    values |= {f"base.{key}": 1.0 for key in ("ne", "fm_ne", "fm_flops_per_candidate")}
    figures.write_text(json.dumps(values))
    command = ["transfer", "report", "--run", str(copy_of_run), "--studies", str(figures)]
    printed = CliRunner().invoke(cli.app, [*command, "--html", str(file)], catch_exceptions=False)
    assert printed.exit_code == 0, printed.output
    text = file.read_text(encoding="utf-8")
    assert "What the gain depends on" in text and "staleness: 4" in text and "+1.25" in text
    with pytest.raises(ConfigError, match="--html FILE"):
        CliRunner().invoke(cli.app, command, catch_exceptions=False)
