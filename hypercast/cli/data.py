"""``hypercast data``: import, describe, validate."""

import time
from pathlib import Path
from typing import Annotated

import typer

from hypercast.cli.output import Json, emit, progress
from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.errors import ConfigError
from streaming.importers.complete_journey import CompleteJourney
from streaming.importers.synthetic import Synthetic
from streaming.validate import validate

data = typer.Typer(no_args_is_help=True, help="Data sets: import, describe, validate.")

IMPORTERS: dict[str, type[CompleteJourney.Config] | type[Synthetic.Config]] = {
    "complete-journey": CompleteJourney.Config,
    "synthetic": Synthetic.Config,
}


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
    with progress(json) as advance:
        validate(importer.build(out, advance))
    emit({"dataset": str(out), "seconds": round(time.monotonic() - begun, 1)}, json)


@data.command("validate")
def data_validate(dataset: Path, json: Json = False) -> None:
    """Check every row of a data set; the first fault is named with file, row, column and remedy."""
    validate(Dataset.open(dataset))
    emit({"dataset": str(dataset), "valid": True}, json)


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
    emit(
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
