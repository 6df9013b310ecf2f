"""A service takes of a stream what training takes, whatever the order of reading and wherever it begins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.stream_rehearsal import DAY, LATENESS, PARTITIONS, Rehearsed, rehearse
from hypercast.serving.features.admission import Admission
from streaming.dataset import Dataset
from streaming.sources.kafka import Record
from streaming.sources.messages import END, encode
from streaming.sources.positions import Partition, Position
from streaming.sources.sealed import Sealed, SealedWindows, records
from streaming.sources.source import StreamConfig, StreamSource
from tests.streaming.sources.fakes import FakeReader, Logs, logs_of

STREAM = StreamConfig(bootstrap_servers="nowhere", allowed_lateness_seconds=LATENESS, until="end")
ENGAGEMENTS = [Partition("engagements", index) for index in range(PARTITIONS)]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    return rehearse(tmp_path_factory.mktemp("rehearsed"), "", late=0.05, twice=0.1)


@pytest.fixture(scope="module")
def logs(rehearsed: Rehearsed) -> Logs:
    """What the topics hold; some of it is no engagement at all."""
    logs = logs_of(rehearsed.sent, partitions=PARTITIONS)
    for partition in ENGAGEMENTS:
        logs[partition].insert(len(logs[partition]) // 2, b"{nonsense")
    return logs


@pytest.fixture(scope="module")
def sealed(rehearsed: Rehearsed, logs: Logs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stream once training has sealed all of it."""
    folder = tmp_path_factory.mktemp("sealed")
    windows = SealedWindows(folder=folder, catalogue=rehearsed.dataset)
    with StreamSource(config=STREAM, sealed=windows, reader=FakeReader(logs, seed=5)) as source:
        while source.seal_next() is not None:
            pass
    return folder


def followed(logs: Logs, catalogue: Dataset, record: Sealed, *, seed: int) -> tuple[dict[int, Any], dict[str, int]]:
    """Engagements that count after a window was sealed, by id, and how many messages came to what."""
    begin = {each: position for each, position in record.positions.items() if each in ENGAGEMENTS}
    since = catalogue.window(record.window).end
    admission = Admission(config=STREAM, catalogue=catalogue, since=since, positions=begin)
    reader, ended = FakeReader(logs, seed=seed), set()
    reader.start({each: position.offset for each, position in begin.items()})
    rows: dict[int, Any] = {}
    outcomes: dict[str, int] = {}
    while len(ended) < len(begin):
        for message in reader.poll():
            if message.end:
                ended.add(message.partition)
                continue
            admitted = admission.admit(message)
            outcomes[admitted.outcome] = outcomes.get(admitted.outcome, 0) + 1
            if admitted.row is not None:
                assert rows.setdefault(admitted.row["engagement_id"], admitted.row) == admitted.row
    return rows, outcomes


@pytest.mark.parametrize("seed", range(3))
def test_what_counts_is_what_training_seals(rehearsed: Rehearsed, logs: Logs, sealed: Path, seed: int) -> None:
    grown, seen = Dataset.open(sealed / "data"), set()
    for record in records(sealed)[:-1]:
        rows, outcomes = followed(logs, rehearsed.dataset, record, seed=seed)
        ordered = sorted(rows.values(), key=lambda row: (row["user_id"], row["time"], row["engagement_id"]))
        after = [window.index for window in grown.windows if window.index > record.window]
        wanted = pa.concat_tables([grown.engagements(window) for window in after]).to_pylist()
        wanted.sort(key=lambda row: (row["user_id"], row["time"]))  # stable: parts are in order of id
        names = ("user_id", "item_id", "surface", "action", "quantity")
        assert [[row[name] for name in names] for row in ordered] == [[row[name] for name in names] for row in wanted]
        seen |= outcomes.keys()
    assert seen == {"observed", "old", "late", "bad", "end"}


def engagement(time: int, **changes: Any) -> dict[str, Any]:
    row = {"engagement_id": time, "user_id": 100, "item_id": 1000, "surface": 0, "action": 0, "quantity": 1.0}
    return {**row, "time": time, **changes}


@pytest.fixture
def said(rehearsed: Rehearsed) -> Callable[..., tuple[str, str]]:
    """What becomes of a payload, after the first window, in one partition."""
    windows, partition = rehearsed.dataset.windows, ENGAGEMENTS[0]
    begin = {partition: Position(begin=0, offset=0, latest=windows[0].end, read=0)}
    admission = Admission(config=STREAM, catalogue=rehearsed.dataset, since=windows[0].end, positions=begin)

    def say(payload: bytes, produced: int | None = None) -> tuple[str, str]:
        found = admission.admit(Record(partition=partition, offset=0, produced=produced, payload=payload))
        return found.outcome, found.reason

    return say


def test_what_cannot_be_used_moves_no_clock(rehearsed: Rehearsed, said: Callable[..., tuple[str, str]]) -> None:
    after, far = rehearsed.dataset.windows[0].end, rehearsed.dataset.windows[2].end
    row = engagement(far)
    for payload, produced, reason in (
        (b"", None, "not JSON"),
        (encode("engagement", {**row, "user_id": 5}), None, "user_id: 5 is not in users.parquet"),
        (encode("engagement", {**row, "surface": 9}), None, "surface: 9 is out of range"),
        (encode("labels", {"request_id": 1, "request_time": 1, "time": 1, "labels": []}), None, "kind 'labels' in"),
        (encode("engagement", row), far - 301_000_000, "its time is 301 s after it was produced"),
    ):
        outcome, told = said(payload, produced)
        assert outcome == "bad" and reason in told
    assert said(encode("engagement", engagement(after)))[0] == "observed"


def test_late_is_by_the_clock_of_the_partition(rehearsed: Rehearsed, said: Callable[..., tuple[str, str]]) -> None:
    first, second = rehearsed.dataset.windows[:2]
    closes = second.end + DAY * 1_000_000
    assert said(encode("engagement", engagement(first.end - 1)))[0] == "old"
    for time, outcome in ((closes - 1, "observed"), (second.start, "observed"), (closes, "observed")):
        assert said(encode("engagement", engagement(time)))[0] == outcome
    assert said(encode("engagement", engagement(second.end - 1)))[0] == "late"
    assert said(END)[0] == "end"
    assert said(encode("engagement", engagement(closes)))[0] == "late"
    assert said(encode("engagement", engagement(rehearsed.dataset.windows[-1].end)))[0] == "observed"
