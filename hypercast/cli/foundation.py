"""``hypercast foundation``: the snapshots of a run."""

import typer

from hypercast.cli.output import DEMO, Json, RunFolder, emit_rows

foundation = typer.Typer(no_args_is_help=True, help="The foundation model's snapshots.")


@foundation.callback()
def _group() -> None:
    """A group stays one with a single command in it."""


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
