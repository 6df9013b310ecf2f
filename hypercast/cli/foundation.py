"""``hypercast foundation``: train the foundation model on several workers; the snapshots of a run."""

from pathlib import Path
from typing import Annotated

import typer

from hypercast.cli.output import DEMO, Json, RunFolder, emit, emit_rows, progress
from streaming import config as configuration

foundation = typer.Typer(no_args_is_help=True, help="The foundation model: train it, list its snapshots.")


@foundation.command("train")
def foundation_train(
    config: Annotated[Path, typer.Argument(help="Platform file, such as configs/platform/complete_journey.yaml.")],
    workers: Annotated[int | None, typer.Option(help="How many, instead of the file's.", min=1)] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Run folder instead of the file's.")] = None,
    json: Json = False,
) -> None:
    """Train and publish window by window on workers of Ray Train. Resumes after a kill, on any number of workers.

    Experts then train from the same folder: hypercast run PLATFORM.yaml.
    """
    from foundation.sharded import plan
    from hypercast.runtime import sharded
    from hypercast.runtime.config import PlatformConfig
    from hypercast.runtime.platform import Platform, import_if_absent

    platform = configuration.load(config, PlatformConfig)
    if run is not None:
        platform = platform.model_copy(update={"run": run})
    with progress(json) as advance:
        import_if_absent(platform.dataset, advance)
    Platform(platform)  # keeps the configuration in the run folder, or refuses one that was begun under another
    platform = sharded.with_workers(platform, workers)
    if not json:
        emit_rows(plan.to_rows(sharded.planned(platform)), json)
    with progress(json) as advance:
        facts = sharded.train(platform, advance)
    emit({**facts, "plan": str(platform.run / sharded.PLAN_FILE)}, json)


@foundation.command("list")
def foundation_list(run: RunFolder = DEMO, json: Json = False) -> None:
    """Snapshots in a run's registry."""
    from hypercast.registry import Registry

    registry = Registry(run / "registry")
    rows = [
        {"snapshot": snapshot.name, "watermark": snapshot.watermark, "parent": snapshot.manifest["parent"]}
        for lineage in registry.lineages()
        for snapshot in registry.list(lineage)
    ]
    emit_rows(rows, json)
