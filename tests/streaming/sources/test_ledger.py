"""What was not used is told of once, and a killed writer's half line is no line."""

from pathlib import Path

from streaming.sources import ledger
from streaming.sources.ledger import Ledger
from streaming.sources.positions import Partition, Position

PLACE = Partition("requests", 3)


def at(offset: int) -> dict[Partition, Position]:
    return {PLACE: Position(begin=0, offset=offset, latest=0, read=offset)}


def test_once_however_often_it_is_read_again(tmp_path: Path) -> None:
    for _ in range(3):
        book = Ledger(folder=tmp_path, positions=at(5))
        for offset in (5, 6, 6):
            book.note("late", PLACE, offset, "window 2 was closed", kind="request", id=offset * 10)
        book.note("quarantine", PLACE, 7, "not JSON")
        book.flush()
        assert book.counts == {"late": 2, "quarantine": 1}
    assert [(entry["offset"], entry["id"]) for entry in ledger.read(tmp_path, "late")] == [(5, 50), (6, 60)]
    assert ledger.read(tmp_path, "quarantine") == [
        {"topic": "requests", "partition": 3, "offset": 7, "reason": "not JSON"}
    ]


def test_before_the_first_position_everything_is_remembered(tmp_path: Path) -> None:
    for _ in range(2):
        book = Ledger(folder=tmp_path, positions={})
        book.note("late", PLACE, 0, "window 1 was closed")
        book.flush()
    assert len(ledger.read(tmp_path, "late")) == 1


def test_half_a_line_is_written_again(tmp_path: Path) -> None:
    book = Ledger(folder=tmp_path, positions=at(0))
    book.note("late", PLACE, 1, "window 1 was closed")
    book.note("late", PLACE, 2, "window 1 was closed")
    book.flush()
    path = tmp_path / "late.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert [entry["offset"] for entry in ledger.read(tmp_path, "late")] == [1]
    book = Ledger(folder=tmp_path, positions=at(0))
    for offset in (1, 2):
        book.note("late", PLACE, offset, "window 1 was closed")
    book.flush()
    assert [entry["offset"] for entry in ledger.read(tmp_path, "late")] == [1, 2]
