"""The entry point, and the commands that are not in a group."""

import errno
import importlib.resources
import json as json_format
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from hypercast import doctor as diagnosis
from hypercast.cli.data import data
from hypercast.cli.expert import expert
from hypercast.cli.foundation import foundation
from hypercast.cli.output import DEMO, Json, RunFolder, emit_report, progress
from hypercast.cli.precision import precision
from hypercast.cli.scale import scale
from hypercast.cli.serve import serve
from hypercast.cli.served import served
from hypercast.cli.speculate import speculate
from hypercast.cli.store import store
from hypercast.cli.stream import stream
from hypercast.cli.transfer import transfer
from streaming import config as configuration
from streaming.errors import UserError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Foundation-expert distillation platform.")
for name, group in {
    "data": data,
    "foundation": foundation,
    "expert": expert,
    "transfer": transfer,
    "store": store,
    "stream": stream,
}.items():
    app.add_typer(group, name=name)

app.command("precision")(precision)
app.command("serve")(serve)
app.command("served")(served)
app.command("speculate")(speculate)
app.command("scale")(scale)


def main() -> None:
    """Entry point: prints a user's mistake, or that a disk is full, without a traceback and exits with status 2."""
    try:
        app()
    except UserError as error:
        _stop(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" for {error.filename}" if error.filename else ""
        _stop(f"no space is left on the disk{where}. What was finished is kept: free some, then repeat the command.")


def _stop(message: str) -> None:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(2)


@app.command()
def demo(run: RunFolder = DEMO, json: Json = False) -> None:
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


def shipped_config(name: str) -> Path:
    """Path of a configuration that is shipped with the package, such as ``platform/demo.yaml``."""
    return Path(str(importlib.resources.files("hypercast") / "configs" / name))


def _run_platform(path: Path, *, run: Path | None, json: bool) -> None:
    from hypercast.cli.watch import watch
    from hypercast.runtime.config import PlatformConfig
    from hypercast.runtime.platform import FLOPS_FILE, Platform, import_if_absent

    config = configuration.load(path, PlatformConfig)
    if run is not None:
        config = config.model_copy(update={"run": run})
    with progress(json) as advance:
        import_if_absent(config.dataset, advance)
    platform = Platform(config)
    with watch(json) as (advance, board):
        report = platform.run(advance, board)
    emit_report(report, json)
    if not json:
        flops = json_format.loads((config.run / FLOPS_FILE).read_text())
        counted = ", ".join(f"{name} {value / 1e6:.3f}" for name, value in flops.items())
        Console().print(
            f"Compute for a candidate, MFLOP: {counted}\n"
            f"Runs, tables, figures and models in MLflow: hypercast transfer ui --run {config.run}\n"
            f"The table again: hypercast transfer report --run {config.run}"
        )
