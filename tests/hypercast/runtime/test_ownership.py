"""A lock is held by one process, for as long as it lives."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hypercast.runtime import platform
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.ownership import OwnershipError, own
from hypercast.runtime.plan import run_lock
from hypercast.runtime.platform import Platform
from streaming import config as configuration

HOLDER = """
import sys, time
from pathlib import Path
from hypercast.runtime.ownership import own
held = own(Path(sys.argv[1]), patience=0)
print("held", flush=True)
time.sleep(600)
"""


def held_elsewhere(lock: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLDER, str(lock)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_holder_is_named_and_the_lock_is_free_when_it_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "jobs" / "foundation"
    with held_elsewhere(lock) as holder:
        for _ in range(2):  # who fails does not take the holder's name away
            with pytest.raises(OwnershipError, match=rf"^{lock}: .*\(process {holder.pid} on .*--run runs/second$"):
                own(lock, patience=0.1)
        holder.send_signal(signal.SIGKILL)
        with own(lock, patience=30), pytest.raises(OwnershipError):
            own(lock, patience=0)
    own(lock, patience=0).close()


def test_a_second_run_in_the_same_folder_is_refused_and_changes_nothing(
    platform_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "PATIENCE", 0.0)
    run = tmp_path / "run"
    made = Platform(configuration.load(platform_file(run), PlatformConfig))
    with own(run_lock(run), patience=0), pytest.raises(OwnershipError, match="another process works in this folder"):
        made.run(lambda message, share: None)
    assert not (run / "checkpoints").exists() and not (run / "mlflow.json").exists()
