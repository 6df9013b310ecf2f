"""A run's snapshot is made compact by requests from before its watermark, and the command tells of every layer."""

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from foundation.model import FoundationModel
from hypercast.cli.precision import precision
from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.serving.precision import state
from hypercast.serving.precision.compact import Precision
from hypercast.serving.precision.snapshots import compact_snapshot, scored_logits
from streaming import config as configuration
from streaming.errors import ConfigError
from streaming.workspace import Workspace

APP = typer.Typer()
APP.command()(precision)


def test_the_newest_snapshot_is_compacted_as_it_scores(tiny_run: Path) -> None:
    found = compact_snapshot(tiny_run, config=Precision(), name=None, requests=10)
    newest = Registry(tiny_run / "registry").list("FM")[-1]
    assert found.snapshot.name == newest.name
    assert found.compacted.report.ne_cost_pct <= Precision().ne_cost_pct
    assert found.compacted.report.table_ratio > 3
    config = configuration.load(tiny_run / "platform.yaml", PlatformConfig)
    assert isinstance(found.compacted.model, FoundationModel)
    assert found.compacted.model.config == config.foundation.model


def test_the_command_prints_keeps_and_refuses(tiny_run: Path, tmp_path: Path) -> None:
    out, bounds = tmp_path / "compact", tmp_path / "bounds.yaml"
    bounds.write_text("kernels: []\ntables: [int8]\nrounds: 1\n")
    given = ["--run", str(tiny_run), "--requests", "10", "--config", str(bounds)]
    shown = CliRunner().invoke(APP, [*given, "--out", str(out)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "stack.layers.0.project" in shown.output
    assert "times smaller" in shown.output
    written = json.loads((out / state.REPORT).read_text())
    by_name = {layer["name"]: layer["kernel"] for layer in written["layers"]}
    assert by_name.pop("table") == "int8"
    assert set(by_name.values()) == {"float32"}
    assert isinstance(CliRunner().invoke(APP, [*given, "--out", str(out)]).exception, ConfigError)
    named = CliRunner().invoke(
        APP, [*given, "--json", "--snapshot", Registry(tiny_run / "registry").list("FM")[0].name]
    )
    assert json.loads(named.output)["candidates"] > 0


def test_scoring_reads_the_logits_that_are_published(tiny_run: Path, workspace: Workspace) -> None:
    config = configuration.load(tiny_run / "platform.yaml", PlatformConfig).foundation.model
    model = config.build(inputs=workspace.inputs, seed=0).eval()
    reader = workspace.reader({"all": (workspace.engagements, config.history)})
    batch = reader.batch(workspace.requests(1).slice(0, 3))
    assert scored_logits(model, batch).shape == (len(batch.item_C), 2)
