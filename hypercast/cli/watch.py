"""What a person sees while a platform runs: a bar for the windows, and a line for each job."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from hypercast.runtime.board import Board

_LONG = 2.0
"""Seconds after which it is said how long a job has been doing the same."""


@contextmanager
def watch(json: bool) -> Iterator[tuple[Callable[[str, float], None], Board]]:
    """A live picture on standard error; inside, what to call when a window is done, and the board that jobs write to.

    Args:
        json: show nothing.
    """
    board = Board()
    if json:
        yield lambda message, share: None, board
        return
    bar = Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    task = bar.add_task("starting", total=1.0)

    def advance(message: str, share: float) -> None:
        bar.update(task, description=message, completed=share)

    with Live(_Picture(bar, board), console=Console(stderr=True), refresh_per_second=2):
        yield advance, board


class _Picture:
    """Drawn anew at every refresh."""

    def __init__(self, bar: Progress, board: Board) -> None:
        self._bar = bar
        self._board = board

    def __rich__(self) -> RenderableType:
        return Group(self._bar, table(self._board))


def table(board: Board) -> Table:
    """A row a job; the column of restarts is there once any job has died."""
    lines = board.lines()
    died = any(line.restarts for line in lines)
    drawn = Table("job", "works on", "window done", "a minute", "does now", *(["restarts"] if died else []), box=None)
    for line in lines:
        drawn.add_row(
            line.name,
            line.title,
            "–" if line.window is None else str(line.window),
            f"{line.per_minute:.1f}" if line.window is not None else "–",
            line.doing if line.seconds < _LONG else f"{line.doing}, {line.seconds:.0f} s",
            *([str(line.restarts)] if died else []),
        )
    return drawn
