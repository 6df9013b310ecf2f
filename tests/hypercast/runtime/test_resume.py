"""A run that was killed goes on with the same bits: predictions, snapshots, metrics, MLflow."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hypercast.tensors
from hypercast.registry import Registry
from hypercast.store.tae_log import TaeLog
from hypercast.training import checkpoint
from streaming import files
from streaming.importers.synthetic import Synthetic
from transfer import monitor
from transfer.monitor import Monitor

DRIVER = '''
"""Reads "PLATFORM.yaml MODULE FUNCTION COUNT before|after" lines: runs the platform in a fork of this process, which
kills itself at that call of the function. Answers with the exit status. Forks share one slow start."""

import importlib
import os
import signal
import sys

import mlflow
from hypercast.cli import main as cli
from hypercast.runtime import platform


def arm(module, function, count, when):
    *path, name = function.split(".")
    owner = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == int(count) and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if len(calls) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


for line in sys.stdin:
    file, *moment = line.split()
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        if moment:
            arm(*moment)
        sys.argv = ["hypercast", "run", file, "--json"]
        cli.main()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
'''

MOMENTS = [
    "hypercast.registry Registry.publish 1 after",  # the untrained model is out, and nothing else
    "hypercast.store.segment files.write_text 1 before",  # rows without their manifest
    "hypercast.training.checkpoint save 1 before",  # a surface has predicted and trained, and forgets it
    "hypercast.training.checkpoint save 2 before",  # one surface is a window ahead of the other
    "hypercast.registry Registry.prune 3 after",  # a snapshot whose training is forgotten
    "streaming.files os.replace 25 before",
    "streaming.files os.rename 2 before",  # a checkpoint or a snapshot without its name
    "mlflow MlflowClient.log_batch 8 after",  # half a window of metrics
    "transfer.monitor Monitor.register_snapshot 1 after",
]


@pytest.fixture(scope="module")
def run_until(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., int]]:
    """Run a platform file until a moment, or to its end; returns the exit status."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.py").write_text(DRIVER, encoding="utf-8")
    with (
        (folder / "errors.txt").open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-u", folder / "driver.py"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):

        def run(file: Path, moment: str = "") -> int:
            process.stdin.write(f"{file} {moment}\n")
            process.stdin.flush()
            status = int(process.stdout.readline())
            if status not in (0, -signal.SIGKILL):
                raise AssertionError((folder / "errors.txt").read_text(encoding="utf-8"))
            return status

        yield run
        process.kill()


def environment() -> dict[str, str]:
    """Of a process that finds the project's packages and uses one thread."""
    root = Path(hypercast.tensors.__file__).parents[1]
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


def outcome(run: Path, surfaces: tuple[str, ...] = ("surface_0", "surface_1")) -> dict[str, Any]:
    """Everything that a run leaves behind and a kill could change."""
    saved = {
        name: checkpoint.load(run / "checkpoints" / name)
        for name in ("foundation", *(f"experts/{surface}" for surface in surfaces))
    }
    return {
        "predictions": {
            str(file.relative_to(run)): files.sha256_of(file) for file in (run / "predictions").rglob("*.parquet")
        },
        "segments": {(one.snapshot, one.window): one.sha256 for one in TaeLog(run / "tae_log").segments()},
        "snapshots": {one.name: one.manifest for one in Registry(run / "registry").list("FM")},
        "learned": {name: hypercast.tensors.digest(each.tensors) for name, each in saved.items()},
        "metrics": {name: each.state["metrics"] for name, each in saved.items()},
        "report": (run / "report.md").read_text(encoding="utf-8"),
    }


def check_same(run: Path, uninterrupted: Path, metrics_of: Callable[[Path], dict], **surfaces: Any) -> None:
    ours, theirs = outcome(run, **surfaces), outcome(uninterrupted, **surfaces)
    for name in theirs:
        assert ours[name] == theirs[name], name
        assert theirs[name]
    assert metrics_of(run) == metrics_of(uninterrupted)


def test_killed_at_every_step_of_the_work(
    tiny_run: Path, platform_file: Callable[..., Path], run_until: Callable[..., int], metrics_of, tmp_path: Path
) -> None:
    file = platform_file(tmp_path / "run")
    for moment in MOMENTS:
        assert run_until(file, moment) == -signal.SIGKILL, f"never came to: {moment}"
    assert run_until(file) == 0
    check_same(tmp_path / "run", tiny_run, metrics_of)
    windows = {step for points in metrics_of(tmp_path / "run").values() for step, _, _ in points}
    assert windows == {1, 2, 3, 4}


def test_a_kill_while_the_store_is_made_leaves_no_half_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(uri: str) -> None:
        path = Path(uri.removeprefix("sqlite:///"))
        assert not path.exists()  # MLflow cannot go on with half of its tables
        path.write_bytes(b"half of its tables")
        raise KeyboardInterrupt

    monkeypatch.setattr(monitor, "_connect", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Monitor.Config().build(run=tmp_path, platform="shop")
        assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "at_most", "seconds"), [("local", 10, (0, 5)), ("ray", 6, (4, 11))])
def test_killed_at_random(
    engine: str, at_most: int, seconds: tuple[float, float], platform_file, metrics_of, tmp_path: Path
) -> None:
    """``kill -9`` of all processes of ``hypercast run``, seconds after it began, on a data set that takes longer."""
    config = Synthetic.Config(users=60, items=60, windows=12, surfaces=2, label_delay_seconds=200_000)
    longer = config.build(tmp_path / "longer").path
    delays = random.Random(0)
    whole, broken = (tmp_path / name for name in ("whole", "broken"))
    for run in (whole, broken):
        file = platform_file(run)
        (run / "mlflow.db").unlink()  # a kill may come while it is made, too
        text = file.read_text(encoding="utf-8").replace("batch_size: 8", "batch_size: 4")
        lines = [line for line in text.splitlines() if not line.startswith("dataset")]
        file.write_text("\n".join([*lines, f"dataset: {{path: {longer}}}", f"engine: {engine}"]), encoding="utf-8")
    assert wait_for_end(start(whole)) == 0
    kills = 0
    while kills < at_most:
        process = start(broken)
        time.sleep(delays.uniform(*seconds))
        if process.poll() is not None:  # how far it gets between two kills is the machine's affair
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 2, "ended before it was killed often enough: make the data set larger"
    assert wait_for_end(start(broken)) == 0
    check_same(broken, whole, metrics_of)


def start(run: Path) -> subprocess.Popen[bytes]:
    """Start ``hypercast run``; returns once it works in its run folder."""
    written = run / "platform.yaml"
    before = written.stat().st_mtime_ns if written.exists() else 0
    command = [sys.executable, "-c", "from hypercast.cli.main import main; main()", "run", run.with_suffix(".yaml")]
    with (run.with_suffix(".log")).open("ab") as log:
        process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log, start_new_session=True)
    while process.poll() is None and not (written.exists() and written.stat().st_mtime_ns > before):
        time.sleep(0.02)
    return process


def wait_for_end(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
