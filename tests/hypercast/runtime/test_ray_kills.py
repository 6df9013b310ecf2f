"""Actors of a run are killed with SIGKILL, and the run ends with the same bits as one that was left alone."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hypercast.runtime import plan, platform
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import FoundationJob
from hypercast.runtime.platform import Platform
from hypercast.runtime.ray_engine import RayEngine
from streaming import config as configuration
from streaming.importers.synthetic import Synthetic
from tests.hypercast.runtime.test_resume import check_same

RAY = "engine: ray\nexpert_jobs: 2\nray: {restarts: 20}\n"
PATIENCE = 240.0


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    """One Ray for all tests of this module: its start takes longer than a run."""
    import ray

    ray.init(num_cpus=3, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[RayEngine]:
    """The engines of platforms that run in this test."""
    made: list[RayEngine] = []

    def remembered(**arguments: object) -> RayEngine:
        made.append(RayEngine(**arguments))
        return made[-1]

    remembered.Config = RayEngine.Config
    monkeypatch.setattr(platform, "RayEngine", remembered)
    return made


class Killer:
    """Kills one actor or several each time that a window is done, some part of a second after that."""

    def __init__(self, engines: list[RayEngine], *, kills: int, each_time: int, seed: int) -> None:
        self.left = kills
        self._engines = engines
        self._each_time = each_time
        self._killed: set[int] = set()
        self._random = random.Random(seed)

    def __call__(self, message: str, share: float) -> None:
        for _ in range(min(self._each_time, self.left) if share < 1 else 0):
            pid = self._victim()
            time.sleep(self._random.uniform(0, 0.3))
            os.kill(pid, signal.SIGKILL)
            self._killed.add(pid)
            self.left -= 1

    def _victim(self) -> int:
        jobs = self._engines[-1].jobs
        self._random.shuffle(jobs)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for job in jobs:
                if job.pid is not None and job.pid not in self._killed:
                    return job.pid
            time.sleep(0.01)
        raise AssertionError("no actor came up in time")


def without_restarts(metrics_of: Callable[[Path], dict]) -> Callable[[Path], dict]:
    return lambda run: {key: points for key, points in metrics_of(run).items() if not key[1].startswith("restarts/")}


def test_actors_are_killed_at_random(
    tiny_run: Path, platform_file: Callable[..., Path], engines, metrics_of, tmp_path: Path
) -> None:
    killer = Killer(engines, kills=3, each_time=1, seed=0)
    Platform(configuration.load(platform_file(tmp_path / "run", RAY), PlatformConfig)).run(killer)
    assert killer.left == 0
    restarts = engines[0].restarts()
    assert sum(restarts.values()) == 3
    check_same(tmp_path / "run", tiny_run, without_restarts(metrics_of))
    logged = {name for _, name in metrics_of(tmp_path / "run") if name.startswith("restarts/")}
    assert logged and logged <= {f"restarts/{job}" for job in restarts}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # each kill costs the start of a process, which takes a while on a busy machine
def test_twenty_kills(platform_file: Callable[..., Path], engines, metrics_of, tmp_path: Path) -> None:
    config = Synthetic.Config(users=16, items=24, windows=12, candidates=6, surfaces=2, label_delay_seconds=200_000)
    data = config.build(tmp_path / "data").path
    whole, broken = (tmp_path / name for name in ("whole", "broken"))
    for run, extra in ((whole, ""), (broken, RAY)):
        text = platform_file(run, extra).read_text(encoding="utf-8")
        lines = [f"dataset: {{path: {data}}}" if line.startswith("dataset") else line for line in text.splitlines()]
        run.with_suffix(".yaml").write_text("\n".join(lines), encoding="utf-8")
    Platform(configuration.load(whole.with_suffix(".yaml"), PlatformConfig)).run(lambda message, share: None)
    killer = Killer(engines, kills=20, each_time=2, seed=1)
    Platform(configuration.load(broken.with_suffix(".yaml"), PlatformConfig)).run(killer)
    assert killer.left == 0 and sum(engines[0].restarts().values()) == 20
    check_same(broken, whole, without_restarts(metrics_of))


@pytest.mark.slow
def test_the_foundation_dies_in_the_middle_of_checkpoints(
    tiny_run: Path, platform_file: Callable[..., Path], engines, metrics_of, tmp_path: Path, monkeypatch
) -> None:
    moments = {name: tmp_path / name for name in ("half_written", "not_yet_current", "done_and_not_told")}
    for marker in moments.values():
        marker.touch()
    monkeypatch.setattr(plan, "FoundationJob", dying(moments))
    run = tmp_path / "run"
    Platform(configuration.load(platform_file(run, RAY), PlatformConfig)).run(lambda message, share: None)
    assert not any(marker.exists() for marker in moments.values())
    assert engines[0].restarts() == {"foundation": 3}
    check_same(run, tiny_run, without_restarts(metrics_of))


def dying(moments: dict[str, Path]) -> type:
    """The foundation's job, which kills itself once at each moment whose file is there."""

    def die(moment: str) -> None:
        if moments[moment].exists():
            moments[moment].unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    class Dying(FoundationJob):
        def __init__(self, *arguments: object) -> None:
            from hypercast.training import checkpoint

            save_tensors, write_text, save = (
                checkpoint.hypercast.tensors.save,
                checkpoint.files.write_text,
                checkpoint.save,
            )

            def saved_half(path: Path, tensors: object) -> None:
                save_tensors(path, tensors)
                if path.parent.name.startswith(".step-00000002"):
                    die("half_written")

            def wrote(path: Path, text: str) -> None:
                if path.name == "CURRENT" and text == "step-00000003":
                    die("not_yet_current")
                write_text(path, text)

            def saved(path: Path, **what: object) -> Path:
                folder = save(path, **what)
                if what["step"] == 4:
                    die("done_and_not_told")
                return folder

            checkpoint.hypercast.tensors.save = saved_half
            checkpoint.files.write_text = wrote
            checkpoint.save = saved
            super().__init__(*arguments)

    return Dying
