"""From partitions to sealed windows: whatever the order of reading, once and only once, and nothing unaccounted for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming import files
from streaming.dataset import Dataset
from streaming.errors import DataError
from streaming.history_check import COLUMN
from streaming.sources import ledger, source
from streaming.sources.messages import encode
from streaming.sources.positions import Partition
from streaming.sources.replay import Rehearsal, Sent
from streaming.sources.sealed import SealedWindows, records
from streaming.sources.source import StreamConfig, StreamSource
from streaming.validate import validate
from streaming.workspace import Workspace
from tests.streaming.sources.fakes import FakeReader, Logs, logs_of

DAY = 86_400
CONFIG = StreamConfig(bootstrap_servers="nowhere", allowed_lateness_seconds=DAY, until="end")
REQUESTS = Partition("requests", 0)


def rehearse(dataset: Dataset, **disorder: float) -> list[Sent]:
    return Rehearsal.Config(shuffle_within_seconds=DAY, seed=3, **disorder).build().arrange(dataset)


def run(folder: Path, dataset: Dataset, reader: FakeReader, config: StreamConfig = CONFIG) -> StreamSource:
    """Seal all that can be."""
    stream = StreamSource(config=config, sealed=SealedWindows(folder=folder, catalogue=dataset), reader=reader)
    with stream:
        while stream.seal_next() is not None:
            pass
    return stream


def contents(folder: Path) -> dict[str, str]:
    """Digests of everything in the data set that has grown there."""
    data = folder / "data"
    return {str(file.relative_to(data)): files.sha256_of(file) for file in data.rglob("*.*")}


def told(folder: Path, log: ledger.Log) -> list[tuple[str, int, int, str]]:
    """What a ledger says, in an order of its own: several orders of reading write in several orders."""
    entries = ledger.read(folder, log)
    return sorted((each["topic"], each["partition"], each["offset"], each["reason"]) for each in entries)


def tables(dataset: Dataset) -> list[pa.Table]:
    parts = [dataset.requests(window.index) for window in dataset.windows]
    parts = [part.drop_columns([COLUMN] if COLUMN in part.column_names else []) for part in parts]
    return parts + [dataset.engagements(window.index) for window in dataset.windows]


def test_a_stream_gives_the_data_set_that_it_was_made_of(shop: Dataset, tmp_path: Path) -> None:
    logs = logs_of(rehearse(shop, duplicate_share=0.1), partitions=2)
    grown = run(tmp_path, shop, FakeReader(logs)).sealed.dataset()
    validate(grown)
    assert tables(grown) == tables(shop)
    assert grown.config == shop.config
    assert [files.sha256_of(grown.path / name) for name in ("items.parquet", "users.parquet")] == [
        files.sha256_of(shop.path / name) for name in ("items.parquet", "users.parquet")
    ]
    assert sum(sealed.copies for sealed in records(tmp_path)) > 10
    assert told(tmp_path, "late") == told(tmp_path, "quarantine") == []


def test_late_labels_join_their_requests_when_they_become_known(slow_shop: Dataset, tmp_path: Path) -> None:
    logs = logs_of(rehearse(slow_shop), partitions=3)
    run(tmp_path, slow_shop, FakeReader(logs))
    grown, last = Dataset.open(tmp_path / "data"), slow_shop.windows[-1]
    validate(grown)
    for window in slow_shop.windows:
        ours, theirs = (Workspace(each).requests(window.index) for each in (grown, slow_shop))
        known = theirs.supervision.known_time < last.end  # what becomes known after the last window is nobody's
        assert known.any() and (window != last or not known.all())
        assert np.array_equal(ours.supervision.known_time < ours.supervision.NEVER, known)
        assert np.array_equal(ours.supervision.label, np.where(known, theirs.supervision.label, 0))
        assert np.array_equal(ours.supervision.known_time[known], theirs.supervision.known_time[known])
        assert all(
            np.array_equal(mine.request_id, others.request_id)
            and np.array_equal(mine.supervision.known_time, others.supervision.known_time)
            for (_, mine), (_, others) in zip(
                Workspace(grown).learned_in(window), Workspace(slow_shop).learned_in(window), strict=True
            )
        )


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**16), stop=st.integers(1, 400), partitions=st.integers(1, 3))
def test_one_outcome_in_whatever_order_it_is_read_and_wherever_it_is_killed(
    slow_shop: Dataset, tmp_path_factory: pytest.TempPathFactory, seed: int, stop: int, partitions: int
) -> None:
    disorder = {"duplicate_share": 0.05, "late_share": 0.05, "partitions": partitions}
    logs = logs_of(rehearse(slow_shop, **disorder), partitions=partitions)
    logs[REQUESTS].insert(5, b"nonsense")
    folder = tmp_path_factory.mktemp("orders")
    config = CONFIG.model_copy(update={"max_bad_share": 0.05})
    whole = run(folder / "whole", slow_shop, FakeReader(logs), config)
    reads, kills = FakeReader(logs, seed=seed, stop_after=stop), 0
    while True:
        try:
            run(folder / "killed", slow_shop, reads, config)
            break
        except KeyboardInterrupt:
            kills += 1
            reads = FakeReader(logs, seed=seed + kills, stop_after=stop + 200 * kills)
    assert contents(folder / "whole") == contents(folder / "killed")
    for log in ledger.LOGS:
        assert told(folder / "whole", log) == told(folder / "killed", log)
    assert len(told(folder / "whole", "late")) > 0
    assert len(told(folder / "whole", "quarantine")) == 1
    assert [each.copies for each in records(folder / "whole")] == [each.copies for each in records(folder / "killed")]
    assert whole.sealed.latest == SealedWindows(folder=folder / "killed", catalogue=slow_shop).latest
    shutil.rmtree(folder)


def test_what_is_late_is_named_and_nowhere_else(slow_shop: Dataset, tmp_path: Path) -> None:
    sent = rehearse(slow_shop, late_share=0.1)
    grown = run(tmp_path, slow_shop, FakeReader(logs_of(sent, partitions=2))).sealed.dataset()
    late = {kind: {each.id for each in sent if each.late and each.kind == kind} for kind in ("request", "engagement")}
    assert late["request"] and late["engagement"]
    entries = ledger.read(tmp_path, "late")
    for kind, ids in late.items():
        assert {each["id"] for each in entries if each["kind"] == kind} == ids
    kept = {int(each) for window in grown.windows for each in grown.requests(window.index)["request_id"].to_pylist()}
    every = {each.id for each in sent if each.kind == "request"}
    assert kept == every - late["request"]
    closed = {each["id"] for each in entries if each["kind"] == "labels" and "closed" in each["reason"]}
    orphans = {each["id"] for each in entries if each["kind"] == "labels" and "not accepted" in each["reason"]}
    assert closed == {each.id for each in sent if each.late and each.kind == "labels"}
    assert orphans == {each.id for each in sent if each.kind == "labels" and each.time < grown.windows[-1].end} & (
        late["request"]
    ) - {each.id for each in sent if each.kind == "labels" and each.late}


NO_LABELS = {name: {"purchase": [None] * 4, "multiple": [None] * 4} for name in ("label", "label_time")}


def edited(logs: Logs, edit: Callable[[dict], object], *, every: int = 40) -> Logs:
    """Some request messages changed; ``edit`` changes one in place, or returns its bytes."""
    changed = {partition: list(log) for partition, log in logs.items()}
    for place in range(0, len(changed[REQUESTS]) - 1, every):
        message = json.loads(changed[REQUESTS][place])
        made = edit(message)
        changed[REQUESTS][place] = made if isinstance(made, bytes) else json.dumps(message).encode()
    return changed


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda message: message.update(v=2), "version '2' is unknown; known is 1"),
        (lambda message: message.update(user_id=1), "user_id: 1 is not in users.parquet"),
        (lambda message: message.update(item_id=[5, 5, 5, 5]), "item_id: 5 is not in items.parquet"),
        (lambda message: message.update(time=0, **NO_LABELS), "before the first window"),
        (lambda message: b"\xff\xfe", "not JSON"),
        (lambda message: encode("engagement", {}), "engagement_id: missing"),
        (lambda message: message.update(surface=[9, 9, 9, 9]), "surface: 9 is out of range"),
    ],
)
def test_what_cannot_be_used_is_put_apart_with_its_place_and_the_reason(
    shop: Dataset, tmp_path: Path, edit: Callable[[dict], object], reason: str
) -> None:
    logs = edited(logs_of(rehearse(shop), partitions=2), edit)
    run(tmp_path, shop, FakeReader(logs), CONFIG.model_copy(update={"max_bad_share": 0.1}))
    entries = ledger.read(tmp_path, "quarantine")
    assert [(each["topic"], each["partition"], each["offset"]) for each in entries] == [("requests", 0, 0)]
    assert reason in entries[0]["reason"]
    assert sum(sealed.rows["requests"] for sealed in records(tmp_path)) == 10 * 2 * 4 - 1
    with pytest.raises(DataError, match=r"quarantine.jsonl: 1 of \d+ messages cannot be used, more than max_bad_share"):
        run(tmp_path / "strict", shop, FakeReader(logs), CONFIG.model_copy(update={"max_bad_share": 0.0}))
    assert len(ledger.read(tmp_path / "strict", "quarantine")) == 1


def test_copies_that_differ_count_once_by_place_not_by_order_of_reading(shop: Dataset, tmp_path: Path) -> None:
    logs = logs_of(rehearse(shop), partitions=2)
    message = json.loads(logs[REQUESTS][0])
    other = Partition("requests", 1)
    logs[other].insert(3, json.dumps(message | {"weight": [2.0] * 4}).encode())
    outcomes = []
    for seed in range(4):
        run(tmp_path / str(seed), shop, FakeReader(logs, seed=seed))
        outcomes.append(contents(tmp_path / str(seed)))
        assert told(tmp_path / str(seed), "quarantine") == [("requests", 1, 3, "repeats an id with other content")]
    assert outcomes[1:] == outcomes[:-1]


def test_a_wrong_clock_does_not_close_windows(shop: Dataset, tmp_path: Path) -> None:
    class Stamped(FakeReader):
        def poll(self):
            made = shop.windows[1].start
            return [
                each if each.end else source.Record(**{**fields(each), "produced": made}) for each in super().poll()
            ]

    config = CONFIG.model_copy(update={"max_bad_share": 1.0})
    logs = logs_of(rehearse(shop, partitions=1), partitions=1)
    stream = run(tmp_path, shop, Stamped(logs), config)
    reasons = {each["reason"].split(" s ")[1] for each in ledger.read(tmp_path, "quarantine")}
    assert reasons == {"after it was produced"}
    first, *others = (stream.sealed.record(window.index).rows["requests"] for window in shop.windows)
    assert first == 20 and others == [0, 0, 0]


def fields(record: source.Record) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__slots__}


def test_an_idle_partition_holds_everything_back_unless_it_may_be_set_aside(
    slow_shop: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(source.time, "monotonic", lambda: now.__setitem__(0, now[0] + 0.01) or now[0])
    logs = logs_of(rehearse(slow_shop), partitions=2, end=False)
    messages = {partition: list(log) for partition, log in logs.items()}
    logs[Partition("labels", 0)].clear()
    stops = CONFIG.model_copy(update={"until": "idle", "silence_seconds": 60.0})
    assert run(tmp_path / "waits", slow_shop, FakeReader(logs), stops).sealed.windows == []
    aside = stops.model_copy(update={"idle_after_seconds": 5.0})
    sealed = run(tmp_path / "aside", slow_shop, FakeReader(logs), aside).sealed.windows
    assert sealed == slow_shop.windows[: len(sealed)] and len(sealed) >= 2
    logs = messages
    # What was waiting is not lost: a run that knows of ends reads it all.
    for log in logs.values():
        log.append(encode("end", {}))
    grown = run(tmp_path / "waits", slow_shop, FakeReader(logs)).sealed.dataset()
    assert tables(grown)[len(grown.windows) :] == tables(slow_shop)[len(grown.windows) :]
    assert sum(sealed.rows["labels"] for sealed in records(tmp_path / "waits")) > 0


def test_windows_that_are_added_later_find_what_had_come_for_them(shop: Dataset, tmp_path: Path) -> None:
    short = shutil.copytree(shop.path, tmp_path / "catalogue")
    text = (short / "dataset.yaml").read_text(encoding="utf-8").splitlines()
    last = next(line for line in reversed(text) if line.startswith("- "))
    (short / "dataset.yaml").write_text("\n".join(line for line in text if line != last), encoding="utf-8")
    logs = logs_of(rehearse(shop, duplicate_share=0.05), partitions=2)
    assert len(run(tmp_path / "stream", Dataset.open(short), FakeReader(logs)).sealed.windows) == 3
    grown = run(tmp_path / "stream", shop, FakeReader(logs, seed=1)).sealed.dataset()
    assert tables(grown) == tables(shop)


def test_a_restart_reads_only_what_open_windows_need(shop: Dataset, tmp_path: Path) -> None:
    logs = logs_of(rehearse(shop), partitions=2)
    total = sum(map(len, logs.values()))
    first = FakeReader(logs)
    stream = StreamSource(config=CONFIG, sealed=SealedWindows(folder=tmp_path, catalogue=shop), reader=first)
    with stream:
        for _ in range(3):
            assert stream.seal_next() is not None
    second = FakeReader(logs)
    run(tmp_path, shop, second)
    assert set(first.started.values()) == {None}
    assert all(offset is not None for offset in second.started.values())
    assert second.given < total / 2


def test_an_altered_window_is_not_trained_on_any_further(shop: Dataset, tmp_path: Path) -> None:
    stream = run(tmp_path, shop, FakeReader(logs_of(rehearse(shop), partitions=2)))
    trained = stream.sealed.record(2)
    sealed = SealedWindows(folder=tmp_path, catalogue=shop)
    sealed.require(trained)
    other = sealed.record(3)
    wrong = type(trained).from_json({**trained.to_json(), "digests": other.digests})
    with pytest.raises(DataError, match="trained on window 2, which has other contents"):
        sealed.require(wrong)
    for window in (2, 3, 4):
        (tmp_path / "sealed" / f"window={window:05d}.json").unlink()
    sealed = SealedWindows(folder=tmp_path, catalogue=shop)
    with pytest.raises(DataError, match="trained on window 3, which is not there"):
        sealed.require(other)
    sealed.require(trained)
    assert sealed.latest == trained
