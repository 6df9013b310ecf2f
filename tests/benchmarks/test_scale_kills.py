"""Processes are killed once each, as many as asked for; two runs are the same only where every prediction is."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import scale_kills
from benchmarks.scale_kills import Killer, same_predictions
from tests.transfer.conftest import _make_table as make_table
from transfer import predictions


def test_as_many_as_asked_for_are_killed_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_kills, "LONGEST_PAUSE", 0.01)
    sleepers = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(3)]
    jobs = [SimpleNamespace(pid=process.pid) for process in sleepers] + [SimpleNamespace(pid=None)]
    killer = Killer(SimpleNamespace(jobs=jobs), kills=2, seed=0)
    killer.start()
    killer.join(timeout=60)
    try:
        assert killer.done == 2
        while sum(process.poll() is None for process in sleepers) > 1:  # a signal takes a moment; the limit is pytest's
            time.sleep(0.01)
        assert sorted(process.poll() or 0 for process in sleepers) == [-signal.SIGKILL, -signal.SIGKILL, 0]
    finally:
        for process in sleepers:
            process.kill()
            process.wait()


def test_a_killer_that_is_stopped_kills_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_kills, "LONGEST_PAUSE", 0.01)
    killer = Killer(SimpleNamespace(jobs=[]), kills=1, seed=0)
    killer.start()
    killer.stop()
    assert not killer.is_alive() and killer.done == 0


def test_runs_are_the_same_where_every_prediction_is(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for run in (one, other):
        for window in (1, 2):
            table = make_table(seed=window, noise={"control": 1.0}, requests=20)
            predictions.write(run, surface="home", window=window, table=table)
    assert same_predictions(one, other) and not same_predictions(one, tmp_path / "none")
    assert not same_predictions(tmp_path / "none", tmp_path / "none")
    predictions.write(other, surface="home", window=2, table=make_table(seed=9, noise={"control": 1.0}, requests=20))
    assert not same_predictions(one, other)
