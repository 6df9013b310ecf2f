"""``hypercast expert``: experts and their pins."""

from typing import Annotated

import typer

from hypercast.cli.output import DEMO, Json, RunFolder, emit, emit_rows

expert = typer.Typer(no_args_is_help=True, help="Experts and the snapshots they are pinned to.")


@expert.command("list")
def expert_list(run: RunFolder = DEMO, json: Json = False) -> None:
    """Experts and what they are pinned to."""
    from hypercast import pins
    from hypercast.registry import Registry

    registry = Registry(run / "registry")
    names = pins.experts(registry.root)
    emit_rows([{"expert": name, "pinned to": registry.pinned(name).target} for name in names], json)


@expert.command("pin")
def expert_pin(
    name: str,
    lineage: Annotated[str, typer.Option(help="Name of the foundation model's lineage.")] = "FM",
    version: Annotated[int | None, typer.Option(help="One version of it; without, the expert follows it.")] = None,
    run: RunFolder = DEMO,
    json: Json = False,
) -> None:
    """Tie an expert to a lineage, or to one snapshot of it."""
    from hypercast.registry import Registry

    pin = Registry(run / "registry").pin(name, lineage=lineage, version=version)
    emit({"expert": name, "pinned to": pin.target}, json)


@expert.command("rollback")
def expert_rollback(name: str, run: RunFolder = DEMO, json: Json = False) -> None:
    """Return an expert to the pin it had before."""
    from hypercast.registry import Registry

    emit({"expert": name, "pinned to": Registry(run / "registry").rollback(name).target}, json)
