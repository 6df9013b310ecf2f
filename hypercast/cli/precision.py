"""``hypercast precision``: what fewer bits would do for a foundation model, layer by layer."""

from pathlib import Path
from typing import Annotated

import typer

from hypercast.cli.output import DEMO, Json, RunFolder


def precision(
    run: RunFolder = DEMO,
    snapshot: Annotated[str | None, typer.Option(help="Snapshot, such as FM@0007; the newest by default.")] = None,
    requests: Annotated[int, typer.Option(min=1, help="Recent requests that kernels are chosen by.")] = 128,
    config: Annotated[Path | None, typer.Option(help="YAML file of bounds and candidates.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to keep the compact model in; not there yet.")] = None,
    json: Json = False,
) -> None:
    """Choose the fastest kernel and the smallest table within an accuracy bound, and print size, time and cost."""
    import sys

    from rich.console import Console

    from hypercast.serving.precision import state
    from hypercast.serving.precision.compact import Precision
    from hypercast.serving.precision.snapshots import compact_snapshot
    from hypercast.training.memory import keep_freed_memory
    from streaming import config as configuration
    from streaming.errors import ConfigError

    if out is not None and out.exists():
        raise ConfigError(f"{out} is there already, and nothing is overwritten. Example: --out {out}_2")
    keep_freed_memory()
    bounds = configuration.load(config, Precision) if config is not None else Precision()
    found = compact_snapshot(run, config=bounds, name=snapshot, requests=requests)
    report = found.compacted.report
    if out is not None:
        state.save(out, found.compacted)
    if json:
        sys.stdout.write(report.model_dump_json() + "\n")
        return
    console = Console()
    console.print(f"{found.snapshot.name}, {report.candidates} candidates of recent requests")
    console.print(report.to_rich())
    for kernel, reason in report.unavailable.items():
        console.print(f"{kernel} is left out: {reason}")
    console.print(f"Tables: {report.table_ratio:.2f} times smaller. Expected cost: {report.ne_cost_pct:.5f} % of NE.")
