"""Many experts beside one foundation model: the run's wall time against the same work done one job after the other."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.memory import PeakMemory
from benchmarks.options import Options, Values
from benchmarks.scale_kills import Killer, same_predictions
from benchmarks.study_runs import changed
from benchmarks.timing import spread
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.plan import jobs
from hypercast.runtime.platform import Platform, import_if_absent
from hypercast.runtime.ray_engine import RayEngine
from streaming import config as configuration
from streaming.dataset import Dataset, Window

PLATFORM = Path("configs/platform/demo.yaml")
ARMS = ["control", "control_matched", "tae", "treated"]
"""Variants of every surface's expert."""
WINDOWS, JOBS, ROUNDS = 12, 2, 3
KILLS = 20
RUN = "run"


def measure_experts(options: Options) -> Values:
    """Keys are described in docs/benchmarks.md. One thread a job; Ray's start and the jobs' construction are apart.

    The ratio means something on a machine that has nothing else to do: beside other work, three processes are given
    more of the cores than one.
    """
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as work:
        config = _config(options, Path(work))
        import_if_absent(config.dataset, lambda message, share: None)
        dataset = Dataset.open(config.dataset.path)
        begun = time.perf_counter()
        engine = RayEngine(config=config.ray, cpus=1.0 + config.expert_jobs)
        started = time.perf_counter() - begun
        try:
            with PeakMemory() as memory:
                rounds = [_round(engine, config, Path(work) / str(number)) for number in range(ROUNDS)]
            killed = _killed(engine, config, Path(work))
        finally:
            engine.close()
    alone = {name: [each[name] for each in rounds] for name in rounds[0]}
    whole = alone.pop("together")
    ready = alone.pop("ready")
    sums = [sum(parts) for parts in zip(*alone.values(), strict=True)]
    return {
        "experts24": len(dataset.config.surfaces) * len(ARMS),
        "experts24_windows": WINDOWS,
        **spread("experts24_wall_ratio", [run / total for run, total in zip(whole, sums, strict=True)]),
        **spread("experts24_wall_s", whole),
        **spread("experts24_sum_alone_s", sums),
        **{f"experts24_alone_s.{name}": spread("x", seconds)["x"] for name, seconds in alone.items()},
        "experts24_peak_gib": round(memory.gib, 2),
        "experts24_processes": memory.processes,
        "experts24_jobs": 1 + JOBS,
        "ray_start_s": round(started, 1),
        "jobs_start_s": spread("x", ready, 1)["x"],
        "load_average_before": round(busy, 2),
        **killed,
    }


def _round(engine: RayEngine, config: PlatformConfig, folder: Path) -> dict[str, float]:
    """Seconds of every job alone, one after the other, and of all together in a run, each in a folder of its own."""
    seconds: dict[str, float] = {}
    alone = config.model_copy(update={"run": folder / "alone"})
    windows = Dataset.open(config.dataset.path).windows[:WINDOWS]
    surfaces = Dataset.open(config.dataset.path).config.surfaces
    handles = [engine.start(job) for job in jobs(alone, run=alone.run, surfaces=surfaces)]
    for handle in handles:
        engine.result(handle.ready)
    for handle in handles:
        begun = time.perf_counter()
        for window in windows:
            if handle is handles[0]:
                engine.result(engine.call(handle, "publish", window.index))
                engine.result(engine.call(handle, "run_window", window.index))
            else:
                engine.result(engine.call(handle, "run_window", window.index, None))
        seconds[handle.job.name] = time.perf_counter() - begun
    for handle in handles:
        engine.stop(handle)
    return {**seconds, **_together(engine, config.model_copy(update={"run": folder / RUN}), windows)}


def _killed(engine: RayEngine, config: PlatformConfig, work: Path) -> Values:
    """The run of the first round once more, whose processes are killed at random."""
    run = work / "killed" / RUN
    windows = Dataset.open(config.dataset.path).windows[:WINDOWS]
    killer = Killer(engine, kills=KILLS, seed=0)
    killer.start()
    try:
        seconds = _together(engine, config.model_copy(update={"run": run}), windows)
    finally:
        killer.stop()
    return {
        "experts24_kills": killer.done,
        "experts24_killed_bit_equal": str(same_predictions(work / "0" / RUN, run)),
        "experts24_killed_wall_s": round(seconds["together"], 1),
    }


def _together(engine: RayEngine, config: PlatformConfig, windows: list[Window]) -> dict[str, float]:
    """The run as `hypercast run` does it, with what it writes to MLflow."""
    platform = Platform(config)
    begun = time.perf_counter()
    foundation, *experts = [engine.start(job) for job in platform.jobs()]
    for handle in (foundation, *experts):
        engine.result(handle.ready)
    ready = time.perf_counter() - begun
    with config.monitor.build(run=config.run, platform=config.name) as monitor:
        begun = time.perf_counter()
        platform.run_windows(engine, monitor, foundation, experts, windows)
        together = time.perf_counter() - begun
    for handle in (foundation, *experts):
        engine.stop(handle)
    return {"together": together, "ready": ready}


def _config(options: Options, work: Path) -> PlatformConfig:
    base = configuration.load(PLATFORM, PlatformConfig)
    changes: dict[str, Any] = {"seeds": [0], "expert.arms": ARMS, "windows": WINDOWS, "expert_jobs": JOBS, "threads": 1}
    changes["ray.restarts"] = KILLS
    changes["dataset.path"] = str(options.data or work / "data")
    return changed(base, {**changes, "run": str(work / "run"), "name": "scale-experts"})
