"""Spin-up: an expert of a file learns a run's last windows, its control beside it, from what the TAE log holds.

The same file over the same windows resumes what was begun (:mod:`hypercast.runtime.trainings`).
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from experts.steps import SurfaceLearner
from foundation.publish import Publisher
from hypercast import pins
from hypercast.errors import RegistryError
from hypercast.lock import exclusive
from hypercast.pins import Pin
from hypercast.registry import Registry, Snapshot
from hypercast.runtime import expert_file
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.stream import dataset_of
from hypercast.runtime.teaching import BACKFILL, Teaching
from hypercast.runtime.trainings import Training, Version, measure, pooled, versions
from hypercast.training.loop import ContinualTrainer
from streaming import config as configuration
from streaming import files
from streaming.dataset import Window
from streaming.errors import DataError
from transfer import gain
from transfer.gain import CONTROL
from transfer.monitor import expert_key

Progress = Callable[[str, float], None]


class SpinUp:
    """Trains the expert of a file.

    Args:
        platform: of the run; its ``run`` is the folder.
        name: of an expert that has a file there.

    Raises:
        RegistryError: there is no such expert.
        ConfigError: its file does not fit the data set.
    """

    def __init__(self, *, platform: PlatformConfig, name: str) -> None:
        self.platform = platform
        self.name = name
        self.workspace = platform.workspace(dataset_of(platform, platform.run))
        path = expert_file.path_of(platform.run, name)
        self.expert = expert_file.read(platform.run, name).check(self.workspace.inputs, source=path)
        self.registry = Registry(platform.run / "registry")
        self.log = platform.log.build(platform.run / "tae_log")
        self.pin = self.registry.tie(name, lineage=platform.foundation.publisher.lineage)
        self.seconds: dict[str, float] = {}
        """How long each phase of :meth:`train` took, up to the gain: ``publish``, ``learn``, ``measure``."""

    def train(self, *, backfill: int | None = None, progress: Progress) -> Version:
        """Learn the last ``backfill`` windows, missing TAEs published first; a killed call goes on where it was.

        Without a number, :data:`BACKFILL` of them, or all there are.

        Raises:
            DataError: the data set has fewer windows.
            RegistryError: TAEs are missing that no snapshot in the registry may publish (law L3); nothing was begun.
        """
        torch.set_num_threads(self.platform.threads)
        windows = self.workspace.dataset.windows
        if backfill is None:
            backfill = min(BACKFILL, len(windows))
        if not 0 < backfill <= len(windows):
            raise DataError(
                f"{self.workspace.dataset.path}: cannot replay the last {backfill} windows; allowed is 1 to "
                f"{len(windows)}. Example: hypercast expert train {self.name} --backfill {min(BACKFILL, len(windows))}"
            )
        chosen = windows[-backfill:]
        with exclusive(expert_file.path_of(self.platform.run, self.name).with_suffix("")):
            with self._phase("publish"):
                missing = self._missing(chosen)
                steps = len(missing) + len(chosen)
                if missing:
                    self._publish(missing, lambda done: progress("publishing TAEs", done / steps))
            with self._phase("learn"):
                version = self._version(chosen)
                learner = self._learner(version)
                trainer = ContinualTrainer(
                    config=self.expert.learner.trainer, learner=learner, checkpoints=version.path / "checkpoints"
                )
                for done, window in enumerate(chosen, start=len(missing) + 1):
                    trainer.run_window(window)
                    progress(f"{version.label}, window {window.index}", done / steps)
            with self._phase("measure"):
                learner.export(version.path / "model")
                self._conclude(version, trainer.metrics)
        self._monitor(version, chosen, trainer.metrics)
        return version

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun

    def _missing(self, windows: Sequence[Window]) -> list[tuple[Window, Snapshot]]:
        """What has to be published first, and by which snapshot."""
        known = versions(self.platform.run, self.name)
        teaching = Teaching.of(
            registry=self.registry,
            log=self.log,
            pin=self.pin,
            workspace=self.workspace,
            learner=self.expert.learner,
        )
        try:
            return teaching.missing(windows, begun=bool(known) and known[-1].training == self._training(windows))
        except RegistryError as error:
            number, _ = teaching.longest(len(windows))
            remedy = f"Replay fewer windows: hypercast expert train {self.name} --backfill {number}"
            if not number:
                remedy = (
                    f"Modes that the run can serve: {', '.join(teaching.modes()) or 'none'}. Change the expert's file."
                )
            raise RegistryError(f"{self.log.root}: {error} {remedy}") from None

    def _publish(self, missing: Sequence[tuple[Window, Snapshot]], advance: Callable[[int], None]) -> None:
        publisher = Publisher(
            config=self.platform.publisher(),
            model=self.platform.foundation.model,
            workspace=self.workspace,
            registry=self.registry,
            log=self.log,
        )
        for done, (window, snapshot) in enumerate(missing, start=1):
            publisher.publish(window, snapshot)
            advance(done)

    def _training(self, windows: Sequence[Window]) -> Training:
        return Training(expert=self.expert, first=windows[0].index, last=windows[-1].index, pin=self.pin.target)

    def _version(self, windows: Sequence[Window]) -> Version:
        """The last training if it was the same, or the next one."""
        wanted = self._training(windows)
        known = versions(self.platform.run, self.name)
        if known and known[-1].training == wanted:
            return known[-1]
        number = known[-1].number + 1 if known else 1
        path = expert_file.path_of(self.platform.run, self.name).with_suffix("") / f"{number:04d}"
        files.write_text(path / "training.yaml", configuration.dump(wanted))
        return Version(name=self.name, number=number, path=path)

    def _learner(self, version: Version) -> SurfaceLearner:
        return SurfaceLearner(
            config=self.expert.learner,
            surfaces=[self.expert.surface],
            workspace=self.workspace,
            log=self.log,
            pin=self.pin,
            embedding=self.platform.foundation.model.representation,
            encoding=self.platform.foundation.model.width,
            tower=self.platform.foundation.model.tower_shape(self.workspace.inputs),
            registry=self.registry,
            seeds=self.expert.seeds,
            run=version.path,
        )

    def _conclude(self, version: Version, metrics: dict[int, dict[str, float]]) -> None:
        measured = measure(version)
        asked = [each for each in metrics.values() if "coverage/fresh" in each]
        covered = [each["coverage/fresh"] + each["coverage/stale"] for each in asked]
        outcome = {
            "gain": dataclasses.asdict(measured) | {"verdict": measured.verdict} if measured else None,
            "coverage": sum(covered) / len(covered) if covered else None,
        }
        files.write_text(version.path / "outcome.json", json.dumps(outcome, indent=1) + "\n")

    def _monitor(self, version: Version, windows: Sequence[Window], metrics: dict[int, dict[str, float]]) -> None:
        """Log the windows as runs beneath the platform's: the expert's own, and one of each arm and seed."""
        expert = self.expert
        with self.platform.monitor.build(run=self.platform.run, platform=self.platform.name) as monitor:
            monitor.log_params(version.training.model_dump(mode="json"), key=version.label)
            for window in windows:
                of_window = pooled(version, [window.index])
                rows: dict[str, dict[str, float]] = {
                    expert_key(version.label, column.arm, column.seed): {
                        **values,
                        "train_loss": metrics[window.index].get(f"{column.arm}.seed{column.seed}/train_loss", math.nan),
                    }
                    for column, values in of_window.metrics().items()
                    if column.arm != gain.FM_HEAD
                }
                rows[version.label] = {
                    name: value for name, value in metrics[window.index].items() if name.startswith("coverage/")
                }
                for one in gain.gains(
                    of_window,
                    surface=expert.surface,
                    span=f"window {window.index}",
                    pairs=[(expert.mode, CONTROL)],
                    replicates=200,
                ):
                    key = f"{one.arm}_vs_{one.against}"
                    rows[version.label] |= {
                        f"gain_pct/{key}": one.gain_pct,
                        f"gain_lo/{key}": one.lo,
                        f"gain_hi/{key}": one.hi,
                    }
                monitor.log_window(window=window.index, end=window.end, metrics=rows)


def create(
    platform: PlatformConfig,
    name: str,
    *,
    surface: str,
    task: str | None = None,
    like: str | None = None,
    mode: str | None = None,
) -> tuple[Path, Pin, int]:
    """Write the file of a new expert and pin it; also returns how many windows, up to :data:`BACKFILL`, it can replay.

    See :func:`hypercast.runtime.expert_file.make`.

    Raises:
        RegistryError: a bad name, one that is taken, or a mode that the run can serve in no window; nothing is written.
        ConfigError: no such surface, task or mode.
    """
    run, lineage = platform.run, platform.foundation.publisher.lineage
    workspace, registry = platform.workspace(dataset_of(platform, run)), Registry(run / "registry")
    made = expert_file.make(
        run, name, platform=platform, inputs=workspace.inputs, surface=surface, task=task, like=like, mode=mode
    )
    known = registry.pinned(name) if name in pins.experts(registry.root) else Pin(expert=name, lineage=lineage)
    log = platform.log.build(run / "tae_log")
    teaching = Teaching.of(registry=registry, log=log, pin=known, workspace=workspace, learner=made.learner)
    backfill = teaching.check(
        mode=made.mode,
        declared=platform.publisher().representations,
        example=f"hypercast expert create {name} --surface {surface} --run {run}",
    )
    path = expert_file.create(run, name, made, backfill=backfill)
    return path, registry.tie(name, lineage=lineage), backfill
