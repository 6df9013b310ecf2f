"""Runs one measurement, prints a table, and writes one flat JSON object if asked to."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import (
    attention,
    attention_gpu,
    codecs,
    delayed,
    dirichlet,
    journey,
    machine,
    mfalcon,
    ml1m,
    precision,
    roo,
    scale,
    serving,
    solaris,
    store,
    store_large,
    stream,
    training,
    transfer,
    transfer_studies,
)
from benchmarks.options import Options, Values
from streaming.errors import ConfigError, UserError
from streaming.files import write_text

MEASUREMENTS: dict[str, Callable[[Options], Values]] = {
    "attention": attention.measure,
    "attention_gpu": attention_gpu.measure,
    "codecs": codecs.measure,
    "delayed": delayed.measure,
    "dirichlet": dirichlet.measure,
    "journey": lambda _: dict(journey.measure()),
    "mfalcon": mfalcon.measure,
    "ml1m": ml1m.measure,
    "precision": precision.measure,
    "roo": roo.measure,
    "scale": scale.measure,
    "serving": serving.measure,
    "solaris": solaris.measure,
    "store": store.measure,
    "store_large": store_large.measure,
    "stream": stream.measure,
    "training": training.measure,
    "transfer": transfer.measure,
    "transfer_studies": transfer_studies.measure,
}


def main(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(MEASUREMENTS)}.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="File for one flat JSON object.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Data set: of transfer, roo and delayed; ratings.dat or Parquet for ml1m.")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of finished trainings, a run's for transfer.")] = None,
) -> None:
    """Measure NAME on this machine."""
    if name not in MEASUREMENTS:
        raise ConfigError(f"no measurement '{name}'; allowed are {', '.join(MEASUREMENTS)}. Example: journey")
    begun = time.perf_counter()
    values = {**MEASUREMENTS[name](Options(data=data, work=work)), **machine.facts()}
    values["seconds"] = round(time.perf_counter() - begun, 1)
    table = Table("measure", "value")
    for key, value in values.items():
        table.add_row(key, str(value))
    Console().print(table)
    if json_file is not None:
        write_text(json_file, json.dumps(values, indent=1) + "\n")


def run() -> None:
    """The command line; errors that a user can act on come without a traceback."""
    try:
        typer.run(main)
    except UserError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False)
        raise SystemExit(2) from None


if __name__ == "__main__":
    run()
