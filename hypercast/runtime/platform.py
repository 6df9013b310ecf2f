"""The continual loop of a platform: publish, predict, train, monitor, window by window."""

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypercast.registry import Registry
from hypercast.runtime import reporting, stream, window_metrics
from hypercast.runtime.board import Board
from hypercast.runtime.config import DatasetChoice, PlatformConfig
from hypercast.runtime.engine import Engine, Job, LocalEngine
from hypercast.runtime.jobs import learned_log
from hypercast.runtime.ownership import own
from hypercast.runtime.plan import PATIENCE, jobs, run_lock
from hypercast.runtime.ray_engine import RayEngine
from hypercast.serving.logs.served_first import ServedFirst
from streaming import config as configuration
from streaming import files
from streaming.dataset import Dataset, Window
from streaming.errors import ConfigError, DataError
from transfer import predictions
from transfer.monitor import FOUNDATION, PLATFORM, Monitor, expert_key
from transfer.report import Report

FLOPS_FILE = "flops_per_candidate.json"
"""In the run folder: floating-point operations for one candidate, of the foundation model and of every arm."""

Progress = Callable[[str, float], None]
_logger = logging.getLogger(__name__)


class Platform:
    """Runs a :class:`PlatformConfig`; a rerun in the same folder continues where the last one was killed."""

    def __init__(self, config: PlatformConfig) -> None:
        self.config = config
        self.run_folder = config.run
        self.dataset = Dataset.open(config.dataset.path)
        config.experts_of(self.dataset.config.surfaces)  # refuses what does not fit, before anything is written
        self._keep_config()

    def run(self, progress: Progress, board: Board | None = None) -> Report:
        """Run every window; returns the report.

        A foundation model that is sharded over workers is trained on all windows first, and the experts after it.

        Args:
            progress: gets a message and the share of windows done.
            board: shows what each job does.

        Raises:
            OwnershipError: another process runs the platform in this folder.
            JobDiedError: a job has died more often than `ray.restarts` allows.
        """
        windows = self.dataset.windows[: self.config.windows]
        if self.config.foundation.sharding is not None:
            from hypercast.runtime import sharded  # brings torchrec, which takes seconds and which nothing else needs

            sharded.train(self.config, progress)
        with (
            own(run_lock(self.run_folder), patience=PATIENCE),
            self._engine(board) as engine,
            self.config.monitor.build(run=self.run_folder, platform=self.config.name) as monitor,
        ):
            monitor.log_config(self.config)
            monitor.log_params(self.config.model_dump(mode="json"))
            self._loop(engine, monitor, windows, progress)
            return self._conclude(monitor)

    def report(self, *, task: str | None = None, untouched: bool = False) -> Report:
        """Compare the arms on what was predicted so far; see :func:`hypercast.runtime.reporting.build`."""
        return reporting.build(self.config, task=task, untouched=untouched)

    @contextmanager
    def _engine(self, board: Board | None) -> Iterator[Engine]:
        """What `engine` in the platform file names; its jobs end with it."""
        engine: Engine = LocalEngine(board)
        if self.config.engine == "ray":
            asked = [job.resources.cpus or 0 for job in self.jobs()]
            engine = RayEngine(config=self.config.ray, cpus=sum(asked), board=board)
        try:
            yield engine
        finally:
            engine.close()

    def jobs(self) -> list[Job]:
        """What runs: the foundation model's job, and then the experts'."""
        return jobs(self.config, run=self.run_folder, surfaces=self.dataset.config.surfaces)

    def _loop(self, engine: Engine, monitor: Monitor, windows: list[Window], progress: Progress) -> None:
        last: tuple[Any, list[Any], Window] | None = None

        def done(window: Window) -> None:
            progress(f"window {window.index}", (windows.index(window) + 1) / len(windows))

        for ready in self._ready(windows):
            for handle in (last[0], *last[1]) if last is not None else ():
                engine.stop(handle)
            self._settle(ready)
            foundation, *experts = [engine.start(job) for job in self.jobs()]
            self.run_windows(engine, monitor, foundation, experts, ready, done)
            if self.config.stream is not None:
                stream.relabel(self.config, self.run_folder, since=ready[0])
            last = foundation, experts, ready[-1]
        if last is None:
            raise DataError(
                f"{self.config.name}: the stream has ended, and no window is complete. One is when every partition has "
                "given a message that is later than its end by `allowed_lateness_seconds`, or its end marker."
            )
        self._wind_up(engine, monitor, *last)

    def _settle(self, windows: list[Window]) -> None:
        """Say, before anything reads it, what experts learn of windows that were served; nothing where they do not."""
        log = learned_log(self.config, self.run_folder)
        if isinstance(log, ServedFirst):
            by_surface = (predictions.windows(self.run_folder, name) for name in self.dataset.config.surfaces)
            log.settle(
                windows,
                workspace=self.config.workspace(stream.dataset_of(self.config, self.run_folder)),
                registry=Registry(self.run_folder / "registry"),
                predicted={index for indices in by_surface for index in indices},
            )

    def _ready(self, windows: list[Window]) -> Iterator[list[Window]]:
        """Windows whose data is there, in order: all at once from files, as they are sealed from a stream."""
        if self.config.stream is None:
            yield windows
        else:
            yield from stream.sealed_windows(
                self.config.stream, run=self.run_folder, catalogue=self.dataset, most=len(windows)
            )

    def run_windows(
        self,
        engine: Engine,
        monitor: Monitor,
        foundation: Any,
        experts: list[Any],
        windows: list[Window],
        done: Callable[[Window], None] = lambda window: None,
    ) -> None:
        """Hand out windows in order; at most `lookahead` of them beside the one whose results are waited for."""
        pending: deque[tuple[Window, Any, list[Any]]] = deque()

        def collect() -> None:
            window, trained, learned = pending.popleft()
            by_surface = {name: row for job in learned for name, row in engine.result(job).items()}
            metrics = engine.result(trained)
            restarts = {f"restarts/{job}": float(count) for job, count in engine.restarts().items()}
            self._monitor(monitor, window, metrics, by_surface, restarts)
            done(window)

        for window in windows:
            published = engine.call(foundation, "publish", window.index)
            learned = [engine.call(expert, "run_window", window.index, published) for expert in experts]
            pending.append((window, engine.call(foundation, "run_window", window.index), learned))
            if len(pending) > self.config.lookahead:
                collect()
        while pending:
            collect()

    def _wind_up(self, engine: Engine, monitor: Monitor, foundation: Any, experts: list[Any], last: Window) -> None:
        """Export and register the experts, and count what the models compute."""
        for promise in [engine.call(expert, "export", self.run_folder / "experts") for expert in experts]:
            self._register_experts(monitor, engine.result(promise))
        by_arm = engine.result(engine.call(experts[0], "flops", last.index))
        flops = {FOUNDATION: engine.result(engine.call(foundation, "flops", last.index)), **by_arm}
        monitor.log_params({"flops_per_candidate": flops})
        files.write_text(self.run_folder / FLOPS_FILE, json.dumps(flops) + "\n")

    def _monitor(
        self,
        monitor: Monitor,
        window: Window,
        foundation: dict[str, float],
        by_surface: dict[str, dict[str, float]],
        restarts: dict[str, float],
    ) -> None:
        """Log one window of every run; the users kept apart are left out, as everywhere in development.

        A window that was logged whole is not looked at again: labels that came after it would tell another story of it.
        """
        if window.index <= monitor.complete:
            return
        tasks = [task.name for task in self.dataset.config.tasks]
        metrics = window_metrics.of_window(self.run_folder, window=window.index, tasks=tasks, learned=by_surface)
        metrics[FOUNDATION] |= foundation
        metrics[PLATFORM] |= restarts
        monitor.log_window(window=window.index, end=window.end, metrics=metrics, complete=True)

    def _conclude(self, monitor: Monitor) -> Report:
        """Tables, figures and registered models of the whole run."""
        result = reporting.publish(self.config, monitor)
        lineage = self.config.foundation.publisher.lineage
        for snapshot in Registry(self.run_folder / "registry").list(lineage):
            monitor.register_snapshot(
                snapshot.path,
                name=f"{self.config.name}-{lineage}",
                snapshot=snapshot.name,
                info={"watermark": snapshot.watermark, "schema_hash": snapshot.manifest["schema_hash"]},
                alias="current",
            )
        return result

    def _register_experts(self, monitor: Monitor, exported: dict[str, Path]) -> None:
        """One registered model a surface, one version an arm, the arm's name as its alias."""
        for surface, folder in exported.items():
            for path in sorted(each for each in folder.iterdir() if each.is_dir()):
                monitor.register_snapshot(
                    path,
                    name=f"{self.config.name}-{surface}",
                    snapshot=f"{folder.name}/{surface}/{path.name}",
                    info={"surface": surface, "arm": path.name, "seed": self.config.seeds[0]},
                    alias=path.name,
                    key=expert_key(surface, path.name, self.config.seeds[0]),
                )

    def _keep_config(self) -> None:
        """Write the configuration into the run folder, or refuse a folder that was begun with another one.

        The engine and how it uses Ray, the number of expert jobs and of windows, what jobs are promised and how far
        they run ahead, prefetching, the online store, serving, the spans of reports, and where a stream is found and
        when it is left may change between runs: results do not depend on them.
        """
        path = self.run_folder / "platform.yaml"
        of_stream = {"bootstrap_servers", "client", "until", "silence_seconds", "max_bad_share", "idle_after_seconds"}
        free: dict[str, bool | set[str]] = {"stream": of_stream}
        of_work = ("engine", "ray", "expert_jobs", "resources", "lookahead", "windows", "prefetch")
        free |= dict.fromkeys((*of_work, "run", "online", "serving", "spans"), True)
        if path.is_file():
            before = configuration.load(path, PlatformConfig)
            if before.model_dump(exclude=free) != self.config.model_dump(exclude=free):
                raise ConfigError(
                    f"{path}: this folder holds a run with another configuration; a run resumes only under its own. "
                    "Give another folder, for example: hypercast run PLATFORM.yaml --run runs/second"
                )
        files.write_text(path, configuration.dump(self.config))


def import_if_absent(choice: DatasetChoice, progress: Progress) -> Path:
    """Import the data set that ``choice`` names, unless it is there; returns its path."""
    if choice.complete_journey is not None and not (choice.path / "dataset.yaml").is_file():
        _logger.info("importing Complete Journey into %s", choice.path)
        choice.complete_journey.build(choice.path, progress)
    return choice.path
