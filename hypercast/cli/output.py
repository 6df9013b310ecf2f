"""What commands have in common: options, progress, and how results are printed."""

import dataclasses
import json as json_format
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
RunFolder = Annotated[Path, typer.Option("--run", help="Folder of a platform's run.")]
DEMO = Path("runs/demo")


@contextmanager
def progress(json: bool) -> Iterator[Callable[[str, float], None]]:
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


def emit_report(report: Any, json: bool) -> None:
    """Print a transfer report."""
    if json:
        sys.stdout.write(json_format.dumps(report.to_dict(), default=dataclasses.asdict) + "\n")
    else:
        Console().print(report.to_rich())


def emit(values: dict[str, Any], json: bool) -> None:
    """Print one object: a line for each key."""
    if json:
        sys.stdout.write(json_format.dumps(values) + "\n")
    else:
        table = Table(show_header=False, box=None)
        for key, value in values.items():
            table.add_row(key, str(value))
        Console().print(table)


def emit_rows(rows: list[dict[str, Any]], json: bool) -> None:
    """Print a table of objects with the same keys."""
    if json:
        sys.stdout.write(json_format.dumps(rows) + "\n")
        return
    table = Table(*(rows[0] if rows else ["nothing there yet"]))
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
