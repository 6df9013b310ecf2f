"""The command line. Long jobs show progress, commands have ``--json``, and a mistake is one clear message."""

import dataclasses
import importlib.resources
import json as json_format
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from hypercast import doctor as diagnosis
from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.errors import ConfigError, UserError
from streaming.importers.complete_journey import CompleteJourney
from streaming.importers.synthetic import Synthetic
from streaming.validate import validate

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Foundation-expert distillation platform.")
data = typer.Typer(no_args_is_help=True, help="Data sets: import, describe, validate.")
foundation = typer.Typer(no_args_is_help=True, help="The foundation model's snapshots.")
expert = typer.Typer(no_args_is_help=True, help="Experts and the snapshots they are pinned to.")
transfer = typer.Typer(no_args_is_help=True, help="What the foundation model is worth to each surface.")
store = typer.Typer(no_args_is_help=True, help="The log of target-aware embeddings.")
for name, group in {
    "data": data,
    "foundation": foundation,
    "expert": expert,
    "transfer": transfer,
    "store": store,
}.items():
    app.add_typer(group, name=name)

IMPORTERS: dict[str, type[CompleteJourney.Config] | type[Synthetic.Config]] = {
    "complete-journey": CompleteJourney.Config,
    "synthetic": Synthetic.Config,
}

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
RunFolder = Annotated[Path, typer.Option("--run", help="Folder of a platform's run.")]


def main() -> None:
    """Entry point: prints a user's mistake without a traceback and exits with status 2."""
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


@app.command()
def demo(run: RunFolder = Path("runs/demo"), json: Json = False) -> None:
    """The whole story on Complete Journey, in minutes: import, train, publish, experts, gains."""
    _run_platform(shipped_config("platform/demo.yaml"), run=run, json=json)


@app.command("run")
def run_platform(
    config: Annotated[Path, typer.Argument(help="Platform file, such as configs/platform/complete_journey.yaml.")],
    run: Annotated[Path | None, typer.Option("--run", help="Run folder instead of the file's.")] = None,
    json: Json = False,
) -> None:
    """The continual loop: foundation model, publishing, all experts, monitor. Resumes after a kill."""
    _run_platform(config, run=run, json=json)


@app.command()
def doctor(json: Json = False) -> None:
    """What is installed, whether it fits together, which kernels there are, and how to mend what is not."""
    raise typer.Exit(diagnosis.run(json=json))


@data.command("import")
def data_import(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(IMPORTERS)}.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make; it must not exist.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of the importer, such as user_share=0.1; repeatable.")
    ] = None,
    json: Json = False,
) -> None:
    """Import a data set into the platform's format, with as-of features, and validate it."""
    if name not in IMPORTERS:
        raise ConfigError(f"no importer '{name}'; allowed are {', '.join(IMPORTERS)}. Example: complete-journey")
    values = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: give KEY=VALUE, for example --set user_share=0.1")
        values[key] = value
    importer = configuration.parse(values, IMPORTERS[name], source="--set")
    begun = time.monotonic()
    with _progress(json) as advance:
        validate(importer.build(out, advance))
    _emit({"dataset": str(out), "seconds": round(time.monotonic() - begun, 1)}, json)


@data.command("validate")
def data_validate(dataset: Path, json: Json = False) -> None:
    """Check every row of a data set; the first fault is named with file, row, column and remedy."""
    validate(Dataset.open(dataset))
    _emit({"dataset": str(dataset), "valid": True}, json)


@data.command("describe")
def data_describe(dataset: Path, json: Json = False) -> None:
    """Windows, requests, candidates, engagements and rates of a data set."""
    from streaming.workspace import Workspace

    opened = Dataset.open(dataset)
    workspace = Workspace(opened)
    totals = {"requests": 0, "candidates": 0, "positive": 0.0}
    for window in opened.windows:
        requests = workspace.requests(window.index)
        totals["requests"] += len(requests)
        totals["candidates"] += len(requests.item)
        totals["positive"] += float(requests.supervision.label[:, 0].sum())
    candidates = max(totals["candidates"], 1)
    _emit(
        {
            "name": opened.config.name,
            "windows": len(opened.windows),
            "requests": totals["requests"],
            "candidates": totals["candidates"],
            f"{opened.config.tasks[0].name} rate": round(totals["positive"] / candidates, 4),
            "engagements": len(workspace.engagements.time),
            "items": len(workspace.items.ids),
            "users": len(workspace.users.ids),
            "surfaces": ", ".join(opened.config.surfaces),
        },
        json,
    )


@foundation.command("list")
def foundation_list(run: RunFolder = Path("runs/demo"), json: Json = False) -> None:
    """Snapshots in a run's registry."""
    from hypercast.registry import Registry

    registry = Registry(run / "registry")
    rows = [
        {"snapshot": snapshot.name, "watermark": snapshot.watermark, "parent": snapshot.manifest["parent"]}
        for lineage in registry.lineages()
        for snapshot in registry.list(lineage)
    ]
    _emit_rows(rows, json)


@expert.command("list")
def expert_list(run: RunFolder = Path("runs/demo"), json: Json = False) -> None:
    """Experts and what they are pinned to."""
    from hypercast import pins
    from hypercast.registry import Registry

    registry = Registry(run / "registry")
    names = pins.experts(registry.root)
    _emit_rows([{"expert": name, "pinned to": registry.pinned(name).target} for name in names], json)


@expert.command("pin")
def expert_pin(
    name: str,
    lineage: Annotated[str, typer.Option(help="Name of the foundation model's lineage.")] = "FM",
    version: Annotated[int | None, typer.Option(help="One version of it; without, the expert follows it.")] = None,
    run: RunFolder = Path("runs/demo"),
    json: Json = False,
) -> None:
    """Tie an expert to a lineage, or to one snapshot of it."""
    from hypercast.registry import Registry

    pin = Registry(run / "registry").pin(name, lineage=lineage, version=version)
    _emit({"expert": name, "pinned to": pin.target}, json)


@expert.command("rollback")
def expert_rollback(name: str, run: RunFolder = Path("runs/demo"), json: Json = False) -> None:
    """Return an expert to the pin it had before."""
    from hypercast.registry import Registry

    _emit({"expert": name, "pinned to": Registry(run / "registry").rollback(name).target}, json)


@transfer.command("report")
def transfer_report(
    run: RunFolder = Path("runs/demo"),
    untouched: Annotated[bool, typer.Option(help="Of the fifth of the users that development never saw.")] = False,
    json: Json = False,
) -> None:
    """Gains by surface, with intervals, of what a run has predicted so far."""
    from hypercast.runtime.config import PlatformConfig
    from hypercast.runtime.platform import Platform

    config = configuration.load(run / "platform.yaml", PlatformConfig)
    platform = Platform(config.model_copy(update={"run": run}))
    _emit_report(platform.report(untouched=untouched), json)


@transfer.command("ui")
def transfer_ui(
    run: RunFolder = Path("runs/demo"),
    port: Annotated[int, typer.Option(help="Port on the loopback interface.")] = 5000,
) -> None:
    """Open MLflow on a run's tracking store, on this machine only; stop it with Ctrl-C."""
    import os

    from hypercast.runtime.config import PlatformConfig

    tracking = configuration.load(run / "platform.yaml", PlatformConfig).monitor.tracking
    uri = tracking or f"sqlite:///{(run / 'mlflow.db').resolve()}"
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    os.execve(sys.executable, [*command, "--port", str(port), "--workers", "1"], environment)


@store.command("ls")
def store_ls(run: RunFolder = Path("runs/demo"), json: Json = False) -> None:
    """Segments of the embedding log."""
    from hypercast.store.tae_log import TaeLog

    rows = [
        {"snapshot": segment.snapshot, "window": segment.window, "rows": segment.facts.rows, "sha256": segment.sha256}
        for segment in TaeLog(run / "tae_log").segments()
    ]
    _emit_rows(rows, json)


@store.command("verify")
def store_verify(run: RunFolder = Path("runs/demo"), json: Json = False) -> None:
    """Recompute every digest of the embedding log and of the snapshots; the first damaged file is named."""
    from hypercast.registry import Registry
    from hypercast.store.tae_log import TaeLog

    segments = TaeLog(run / "tae_log").segments()
    for segment in segments:
        segment.verify()
    registry = Registry(run / "registry")
    snapshots = [snapshot for lineage in registry.lineages() for snapshot in registry.list(lineage)]
    for snapshot in snapshots:
        snapshot.load()
    _emit({"segments": len(segments), "snapshots": len(snapshots), "damaged": 0}, json)


def shipped_config(name: str) -> Path:
    """Path of a configuration that is shipped with the package, such as ``platform/demo.yaml``."""
    return Path(str(importlib.resources.files("hypercast") / "configs" / name))


def _run_platform(path: Path, *, run: Path | None, json: bool) -> None:
    from hypercast.runtime.config import PlatformConfig
    from hypercast.runtime.platform import FLOPS_FILE, Platform, import_if_absent

    config = configuration.load(path, PlatformConfig)
    if run is not None:
        config = config.model_copy(update={"run": run})
    with _progress(json) as advance:
        import_if_absent(config.dataset, advance)
    platform = Platform(config)
    with _progress(json) as advance:
        report = platform.run(advance)
    _emit_report(report, json)
    if not json:
        flops = json_format.loads((config.run / FLOPS_FILE).read_text())
        counted = ", ".join(f"{name} {value / 1e6:.3f}" for name, value in flops.items())
        Console().print(
            f"Compute for a candidate, MFLOP: {counted}\n"
            f"Runs, tables, figures and models in MLflow: hypercast transfer ui --run {config.run}\n"
            f"The table again: hypercast transfer report --run {config.run}"
        )


@contextmanager
def _progress(json: bool) -> Iterator[Callable[[str, float], None]]:
    """A progress bar on standard error: what is being done, and the share that is done."""
    columns = (TextColumn("{task.description:<36}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), disable=json
    ) as bar:
        tasks: list[TaskID] = []

        def advance(message: str, share: float) -> None:
            if not tasks:
                tasks.append(bar.add_task(message, total=1.0))
            bar.update(tasks[0], description=message, completed=share)

        yield advance


def _emit_report(report: Any, json: bool) -> None:
    if json:
        sys.stdout.write(json_format.dumps(report.to_dict(), default=dataclasses.asdict) + "\n")
    else:
        Console().print(report.to_rich())


def _emit(values: dict[str, Any], json: bool) -> None:
    if json:
        sys.stdout.write(json_format.dumps(values) + "\n")
    else:
        table = Table(show_header=False, box=None)
        for key, value in values.items():
            table.add_row(key, str(value))
        Console().print(table)


def _emit_rows(rows: list[dict[str, Any]], json: bool) -> None:
    if json:
        sys.stdout.write(json_format.dumps(rows) + "\n")
        return
    table = Table(*(rows[0] if rows else ["nothing there yet"]))
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
