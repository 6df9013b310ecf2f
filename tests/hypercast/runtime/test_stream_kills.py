"""``kill -9`` at random moments of a run that Kafka feeds: every event is trained on once, and nothing else changes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stream_rehearsal import catalogue, rehearse, request_ids, use
from hypercast.runtime import audit
from hypercast.runtime.stream import data_of, folder_of
from hypercast.runtime.stream_check import check
from streaming.dataset import Dataset
from streaming.sources import ledger
from streaming.sources.sealed import records
from tests.hypercast.runtime.test_resume import check_same, environment
from tests.streaming.sources.broker import Broker


def killed(kills: int, seed: int, folder: Path, platform_file: Callable[..., Path], metrics_of: Callable) -> None:
    """Run once without a kill, then under so many, and compare everything that runs leave behind."""
    rehearsed = rehearse(folder, "kills", label_delay_seconds=200_000, users=10, candidates=4)
    broker = Broker(folder / "broker.log")
    try:
        rehearsed.send(broker.bootstrap)
        file = platform_file(folder / "prepared", rehearsed.lines(broker.bootstrap))
        use(file, catalogue(rehearsed.dataset, folder / "catalogue"))
        command = [sys.executable, "-m", "benchmarks.stream_kills", str(file), str(folder), str(kills), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    finally:
        broker.kill()
    assert done.returncode == 0, done.stderr + "".join(log.read_text() for log in folder.glob("[0-9]*.log"))
    told = json.loads(done.stdout)
    whole, *broken = (Path(name) for name in told["folders"])
    assert told["kills"] == kills and broken
    for run in broken:
        check_same(run, whole, metrics_of)
        assert [one.digests for one in records(folder_of(run))] == [one.digests for one in records(folder_of(whole))]
        for log in ledger.LOGS:
            assert named(run, log) == named(whole, log)
        found = check(run)
        assert found["exact"] and found["windows"] == 4 and found["late"] > 0
        windows = [one.window for one in records(folder_of(run))]
        ids = np.concatenate([audit.read(run, "foundation", window)["request_id"].to_numpy() for window in windows])
        # Labels become known two days after their requests: in the same window or in the next, or after the last.
        assert set(ids.tolist()) <= set(request_ids(rehearsed.on_time).tolist())
    assert np.array_equal(request_ids(Dataset.open(data_of(whole))), request_ids(rehearsed.on_time))


def named(run: Path, log: ledger.Log) -> list[tuple[str, int, int, str]]:
    entries = ledger.read(folder_of(run), log)
    return sorted((each["topic"], each["partition"], each["offset"], each["reason"]) for each in entries)


def test_ten_kills(tmp_path: Path, platform_file: Callable[..., Path], metrics_of: Callable) -> None:
    killed(10, 0, tmp_path, platform_file, metrics_of)


@pytest.mark.slow
def test_a_hundred_kills(tmp_path: Path, platform_file: Callable[..., Path], metrics_of: Callable) -> None:
    killed(100, 1, tmp_path, platform_file, metrics_of)
