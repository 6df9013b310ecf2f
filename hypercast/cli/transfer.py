"""``hypercast transfer``: gains, and MLflow."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from hypercast.cli.output import DEMO, Json, RunFolder, emit_report, progress
from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.errors import ConfigError

if TYPE_CHECKING:
    from hypercast.runtime.config import PlatformConfig

transfer = typer.Typer(no_args_is_help=True, help="What the foundation model is worth to each surface.")


@transfer.command("report")
def transfer_report(
    run: RunFolder = DEMO,
    task: Annotated[
        str | None, typer.Option(help="Whose labels are judged; the data set's first if not given.")
    ] = None,
    untouched: Annotated[bool, typer.Option(help="Of the fifth of the users on whom no choice was made.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with figures, to be opened anywhere, and log it in MLflow.")
    ] = None,
    studies: Annotated[
        Path | None, typer.Option(help="Figures of `python -m benchmarks transfer_studies`, to be drawn on the page.")
    ] = None,
    json: Json = False,
) -> None:
    """Gains by surface, with intervals, of what a run has predicted so far."""
    if studies is not None and html is None:
        raise ConfigError("--studies are drawn on the page: give --html FILE too, for example --html report.html")
    from hypercast.runtime import reporting

    config = _config(run)
    report = reporting.build(config, task=task, untouched=untouched)
    if html is not None:
        from transfer import page
        from transfer.studies import read

        drawn = read(studies) if studies is not None else None
        surfaces = Dataset.open(config.dataset.path).config.surfaces
        made = page.build(run, report, title=config.name, surfaces=surfaces, studies=drawn)
        config.monitor.log_page(page.write(made, html), run=run)
    emit_report(report, json)
    if html is not None and not json:
        Console().print(f"The page: {html}", soft_wrap=True)


@transfer.command("trees")
def transfer_trees(
    treated: Annotated[
        bool, typer.Option("--treated", help="Also grow trees that read the teacher's logit (lightgbm_treated).")
    ] = False,
    run: RunFolder = DEMO,
    json: Json = False,
) -> None:
    """Add boosted trees to a finished run, alone (lightgbm) and averaged with its teacher (blended); print its gains.

    The run's report, page and figures are made again, in its folder and in MLflow.
    """
    from hypercast.runtime import reporting
    from hypercast.runtime.reference import add_trees

    with progress(json) as advance:
        add_trees(run, progress=advance, treated=treated)
    emit_report(reporting.republish(_config(run)), json)


@transfer.command("single-surface")
def transfer_single_surface(run: RunFolder = DEMO, json: Json = False) -> None:
    """Add a foundation model of each surface alone to a finished run (fm_single_surface), and print its gains.

    The run's report, page and figures are made again, in its folder and in MLflow.
    """
    from hypercast.runtime import reporting
    from hypercast.runtime.single_surface import train_single_surfaces

    config = _config(run)
    with progress(json) as advance:
        train_single_surfaces(config, run, advance)
    emit_report(reporting.republish(config), json)


@transfer.command("ui")
def transfer_ui(
    run: RunFolder = DEMO,
    port: Annotated[int, typer.Option(help="Port on the loopback interface.")] = 5000,
) -> None:
    """Open MLflow on a run's tracking store, on this machine only; stop it with Ctrl-C."""
    import os

    tracking = _config(run).monitor.tracking
    uri = tracking or f"sqlite:///{(run / 'mlflow.db').resolve()}"
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    os.execve(sys.executable, [*command, "--port", str(port), "--workers", "1"], environment)


def _config(run: Path) -> "PlatformConfig":
    """Of the run in a folder, which may have been moved."""
    from hypercast.runtime.config import PlatformConfig

    return configuration.load(run / "platform.yaml", PlatformConfig).model_copy(update={"run": run})
