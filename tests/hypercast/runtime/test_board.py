"""What people are told that jobs do."""

import pytest

from hypercast.cli.watch import table
from hypercast.runtime.board import Board


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    made = Board(clock)
    made.add("foundation", "all surfaces")
    made.add("experts-0", "storefront+aisle")
    return made


def says(board: Board) -> dict[str, str]:
    return {line.name: line.doing for line in board.lines()}


def run(board: Board, clock: Clock, name: str, window: int, seconds: float) -> None:
    with board.doing(name, "run_window", window, None):
        clock.now += seconds


def test_a_job_is_followed_from_its_start_through_waits_and_calls(board: Board, clock: Clock) -> None:
    assert says(board) == {"foundation": "starting", "experts-0": "starting"}
    board.ready("experts-0")
    board.waiting("experts-0", "waits for foundation")
    with board.doing("foundation", "publish", 3):
        clock.now += 5
        assert says(board) == {"foundation": "publish 3", "experts-0": "waits for foundation"}
        assert [line.seconds for line in board.lines()] == [5, 5]
    assert [line.window for line in board.lines()] == [None, None]


def test_windows_are_counted_when_a_call_returns_and_not_when_it_fails(board: Board, clock: Clock) -> None:
    run(board, clock, "foundation", 1, 20)
    run(board, clock, "foundation", 2, 10)
    with pytest.raises(ValueError, match="no"), board.doing("foundation", "run_window", 3):
        raise ValueError("no")
    line, _ = board.lines()
    assert (line.window, line.per_minute) == (2, pytest.approx(4.0))


def test_who_is_idle_and_ahead_waits_for_the_last(board: Board, clock: Clock) -> None:
    board.ready("experts-0")
    for window in (1, 2, 3):
        run(board, clock, "foundation", window, 1)
    run(board, clock, "experts-0", 1, 1)
    assert says(board) == {"foundation": "waits for experts-0", "experts-0": "idle"}


def test_restarts_have_a_column_once_there_are_any(board: Board, clock: Clock) -> None:
    assert "restarts" not in [column.header for column in table(board).columns]
    board.restarted("foundation")
    drawn = table(board)
    cells = {str(column.header): list(column.cells) for column in drawn.columns}
    assert cells["restarts"] == ["1", "0"] and cells["does now"] == ["restarting", "starting"]
    clock.now += 65
    assert list(table(board).columns[4].cells) == ["restarting, 65 s", "starting, 65 s"]
    board.add("foundation", "all surfaces")  # stopped, and started with the next window of a stream
    assert board.lines()[0].restarts == 1
