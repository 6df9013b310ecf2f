"""Runs one measurement, prints a table, and writes one flat JSON object if asked to."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import journey, machine
from streaming.errors import ConfigError
from streaming.files import write_text

MEASUREMENTS: dict[str, Callable[[], dict[str, float]]] = {"journey": journey.measure}


def main(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(MEASUREMENTS)}.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="File for one flat JSON object.")] = None,
) -> None:
    """Measure NAME on this machine."""
    if name not in MEASUREMENTS:
        raise ConfigError(f"no measurement '{name}'; allowed are {', '.join(MEASUREMENTS)}. Example: journey")
    begun = time.perf_counter()
    values = {**MEASUREMENTS[name](), **machine.facts()}
    values["seconds"] = round(time.perf_counter() - begun, 1)
    table = Table("measure", "value")
    for key, value in values.items():
        table.add_row(key, str(value))
    Console().print(table)
    if json_file is not None:
        write_text(json_file, json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
