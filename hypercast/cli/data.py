"""``hypercast data``: import, describe, validate."""

import json as json_format
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hypercast.cli.output import Json, emit, progress
from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.errors import ConfigError
from streaming.importers.complete_journey import CompleteJourney
from streaming.importers.formats.choice import FORMATS
from streaming.importers.mapping.config import MappingConfig
from streaming.importers.mapping.importer import COUNTS, Mapping, quarantine_file
from streaming.importers.mapping.profile import Profile
from streaming.importers.synthetic import Synthetic
from streaming.validate import validate

data = typer.Typer(no_args_is_help=True, help="Data sets: import, describe, validate.")

IMPORTERS: dict[str, type[CompleteJourney.Config] | type[Synthetic.Config]] = {
    "complete-journey": CompleteJourney.Config,
    "synthetic": Synthetic.Config,
}
NAMES = f"{', '.join(IMPORTERS)}; with --source: {', '.join(FORMATS)}; or a mapping file such as shop.yaml"


@data.command("import")
def data_import(
    name: Annotated[str, typer.Argument(help=f"One of {NAMES}.", metavar="NAME|MAPPING.yaml")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to make; it must not exist.")] = None,
    source: Annotated[Path | None, typer.Option("--source", help="Folder of a format's official files.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of the importer, such as user_share=0.1; repeatable.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what an import would make, and what would go wrong.")
    ] = False,
    json: Json = False,
) -> None:
    """Import a data set into the platform's format, with as-of features, and validate it."""
    if name in IMPORTERS:
        _refuse_options("--dry-run" if dry_run else None, "--source" if source else None, name=name)
    else:
        _refuse_options("--set" if settings else None, name=name)
    if dry_run:
        with progress(json) as advance:
            found = _mapping(name, source).profile(advance, beside=_existing_parent(out))
        _emit_profile(found, json)
        if any(each.severity == "error" for each in found.findings):
            raise typer.Exit(1)
        return
    if out is None:
        raise ConfigError("--out is missing: say which folder to make, for example --out data/shop")
    begun = time.monotonic()
    with progress(json) as advance:
        if name in IMPORTERS:
            validate(configuration.parse(_values(settings), IMPORTERS[name], source="--set").build(out, advance))
        else:
            _mapping(name, source).build(out, advance)
    emit({"dataset": str(out), **_counts(out), "seconds": round(time.monotonic() - begun, 1)}, json)


@data.command("validate")
def data_validate(dataset: Path, json: Json = False) -> None:
    """Check every row of a data set; the first fault is named with file, row, column and remedy."""
    validate(Dataset.open(dataset))
    emit({"dataset": str(dataset), "valid": True}, json)


@data.command("describe")
def data_describe(
    dataset: Path,
    history: Annotated[int, typer.Option(help="Engagements of a history, for what layouts cost.", min=1)] = 128,
    json: Json = False,
) -> None:
    """Windows, requests, candidates, engagements and rates of a data set, and what storing requests saves."""
    from streaming.layout import layout
    from streaming.workspace import Workspace

    opened = Dataset.open(dataset)
    workspace = Workspace(opened)
    positive = sum(float(workspace.requests(w.index).supervision.label[:, 0].sum()) for w in opened.windows)
    layouts = layout(workspace, history=history)
    emit(
        {
            "name": opened.config.name,
            "windows": len(opened.windows),
            "requests": layouts.requests,
            "candidates": layouts.impressions,
            f"{opened.config.tasks[0].name} rate": round(positive / max(layouts.impressions, 1), 4),
            "engagements": len(workspace.engagements.time),
            "items": len(workspace.items.ids),
            "users": len(workspace.users.ids),
            "surfaces": ", ".join(opened.config.surfaces),
            "events read by impression over events read by request": round(layouts.dedup_ratio, 2),
            "bytes by impression over bytes by request": round(layouts.byte_ratio, 2),
        },
        json,
    )


def _mapping(name: str, source: Path | None) -> Mapping:
    """What a format's name and folder, or the path of a mapping file, stand for."""
    if name in FORMATS:
        if source is None:
            raise ConfigError(f"--source is missing: the folder with {FORMATS[name].files}")
        layout = FORMATS[name].layout(source)
        return Mapping(config=layout.mapping, folder=source, read=layout.reader)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"no importer '{name}'; allowed are {NAMES}. Example: complete-journey")
    return Mapping(config=configuration.load(path, MappingConfig), folder=source or path.parent)


def _counts(out: Path) -> dict[str, object]:
    """What a mapping's import counted, and where its bad rows are; nothing for other importers."""
    file = out / "extra" / COUNTS
    if not file.is_file():
        return {}
    counts = json_format.loads(file.read_text(encoding="utf-8"))
    shown = {name: value for name, value in counts.items() if value or name == "rows"}
    return {**shown, "quarantine": str(quarantine_file(out))} if counts["bad_rows"] else shown


def _emit_profile(profile: Profile, json: bool) -> None:
    values = profile.to_dict()
    if json:
        emit(values, json)
        return
    console = Console()
    findings, bad = values.pop("findings"), values.pop("bad")
    surfaces, nulls, sizes = values.pop("surfaces"), values.pop("nulls"), values.pop("candidates_per_request")
    per_request = ", ".join(f"{name} {value:g}" for name, value in sizes.items())
    empty = ", ".join(f"{name} {count:,}" for name, count in nulls.items() if count)
    emit({**values, "candidates per request": per_request, "nulls": empty or "none"}, json)
    table = Table("surface", "rows", *(f"{task} rate" for task in (surfaces[0]["rates"] if surfaces else ())))
    for each in surfaces:
        rates = ("unknown" if rate is None else f"{rate:.4f}" for rate in each["rates"].values())
        table.add_row(escape(each["name"]), f"{each['rows']:,}", *rates)
    console.print(table)
    for each in bad:
        console.print(f"bad rows, {each['rows']:,}: {escape(each['reason'])}; first: {escape(each['first'])}")
    for each in findings:
        console.print(f"{each['severity']}: {escape(each['what'])}. {escape(each['remedy'])}", soft_wrap=True)


def _values(settings: list[str] | None) -> dict[str, str]:
    values = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: give KEY=VALUE, for example --set user_share=0.1")
        values[key] = value
    return values


def _refuse_options(*given: str | None, name: str) -> None:
    for option in given:
        if option is not None:
            raise ConfigError(f"{option} means nothing to {name}: leave it out.")


def _existing_parent(out: Path | None) -> Path | None:
    return out.parent if out is not None and out.parent.is_dir() else None
