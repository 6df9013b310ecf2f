"""Spin-up: an expert of a file learns a run's last windows, its control beside it, from what the TAE log holds.

::

    RUN/experts.d/NAME/0001/      one training, named NAME@0001; the same file over the same windows resumes it
      training.yaml               the file as it was, the windows, the pin
      checkpoints/  predictions/  sums/
      model/ARM/                  weights of the first seed
      outcome.json                the gain; written last, so that only what is complete can be promoted
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experts.steps import SurfaceLearner
from foundation.publish import Publisher
from hypercast import pins
from hypercast.errors import RegistryError
from hypercast.lock import exclusive
from hypercast.pins import Pin, snapshot_name
from hypercast.registry import Registry, Snapshot
from hypercast.runtime import expert_file
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.expert_file import ExpertFile
from hypercast.runtime.stream import dataset_of
from hypercast.training.loop import ContinualTrainer
from streaming import config as configuration
from streaming import files
from streaming.config import Config
from streaming.dataset import Window
from streaming.errors import DataError
from transfer import gain, predictions, sums
from transfer.gain import CONTROL, Gain
from transfer.monitor import expert_key
from transfer.sums import UserSums

BACKFILL = 12
"""Windows that a new expert learns unless told otherwise."""

Progress = Callable[[str, float], None]


class Training(Config):
    """What a training depends on; one that is equal in everything resumes.

    Attributes:
        expert: the file.
        first: index of the first window.
        last: index of the last one.
        pin: what the expert was pinned to.
    """

    expert: ExpertFile
    first: int
    last: int
    pin: str


@dataclass(frozen=True, kw_only=True)
class Version:
    """One training of an expert: ``name@NNNN``, in a folder of its own."""

    name: str
    number: int
    path: Path

    @property
    def label(self) -> str:
        """``mailer_new@0001``."""
        return snapshot_name(self.name, self.number)

    @property
    def training(self) -> Training:
        """What was trained."""
        return configuration.load(self.path / "training.yaml", Training)

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What it came to; None before it is complete.

        Raises:
            DataError: the file is damaged.
        """
        path = self.path / "outcome.json"
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(
                f"{path}: not readable ({error}). Delete it and train again: hypercast expert train {self.name}"
            ) from None


def versions(run: Path, name: str) -> list[Version]:
    """Trainings of an expert that were begun, oldest first."""
    folder = expert_file.path_of(run, name).with_suffix("")
    found = folder.iterdir() if folder.is_dir() else ()
    return [
        Version(name=name, number=int(path.name), path=path)
        for path in sorted(found)
        if re.fullmatch(r"\d{4}", path.name) and (path / "training.yaml").is_file()
    ]


def pooled(version: Version, windows: Sequence[int]) -> UserSums:
    """Sums of what was predicted of the file's task in some windows, the untouched fifth of the users left out."""
    expert = version.training.expert
    parts = [sums.of_window(version.path, surface=expert.surface, window=each, task=expert.task) for each in windows]
    return sums.combine(parts).select(untouched=False)


def measure(version: Version) -> Gain | None:
    """Gain over the control in all windows of a training; None where it is not defined (no rows, one class only)."""
    training = version.training
    windows = predictions.windows(version.path, training.expert.surface)
    found = gain.gains(
        pooled(version, windows),
        surface=training.expert.surface,
        span=f"windows {training.first} to {training.last}",
        pairs=[(training.expert.mode, CONTROL)],
    )
    return found[0] if found else None


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
        self.pin = pin(self.registry, name, lineage=platform.foundation.publisher.lineage)

    def train(self, *, backfill: int | None = None, progress: Progress) -> Version:
        """Learn the last ``backfill`` windows, missing TAEs published first; a killed call goes on where it was.

        Without a number, :data:`BACKFILL` of them, or all there are.

        Raises:
            DataError: the data set has fewer windows.
            RegistryError: TAEs are missing that no snapshot in the registry may publish (law L3).
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
            missing = self._missing(chosen)
            version = self._version(chosen)
            steps = len(missing) + len(chosen)
            if missing:
                self._publish(missing, lambda done: progress("publishing TAEs", done / steps))
            learner = self._learner(version)
            trainer = ContinualTrainer(
                config=self.expert.learner.trainer, learner=learner, checkpoints=version.path / "checkpoints"
            )
            for done, window in enumerate(chosen, start=len(missing) + 1):
                trainer.run_window(window)
                progress(f"{version.label}, window {window.index}", done / steps)
            learner.export(version.path / "model")
            self._conclude(version, trainer.metrics)
        self._monitor(version, chosen, trainer.metrics)
        return version

    def _missing(self, windows: Sequence[Window]) -> dict[Window, Snapshot]:
        """Windows without TAEs that this expert may read, and the snapshot that is to publish each."""
        missing: dict[Window, Snapshot] = {}
        for window in windows:
            written = {segment.snapshot for segment in self.log.segments() if segment.window == window.index}
            if any(_reads(self.pin, snapshot) for snapshot in written):
                continue
            known = [one for one in self.registry.list(self.pin.lineage) if _reads(self.pin, one.name)]
            allowed = [one for one in known if one.watermark <= window.start]
            if not allowed:
                raise RegistryError(
                    f"{self.log.root}: window {window.index} has no TAEs by {self.pin.target}, and no snapshot of it "
                    f"may write them: that needs a watermark of at most {window.start}, and the registry has "
                    f"{', '.join(f'{one.name} ({one.watermark})' for one in known) or 'none'}. Replay fewer windows: "
                    f"hypercast expert train {self.name} --backfill N"
                )
            missing[window] = allowed[-1]
        return missing

    def _publish(self, missing: dict[Window, Snapshot], advance: Callable[[int], None]) -> None:
        publisher = Publisher(
            config=self.platform.model_copy(update={"expert": self.expert.learner}).publisher(),
            model=self.platform.foundation.model,
            workspace=self.workspace,
            registry=self.registry,
            log=self.log,
        )
        for done, (window, snapshot) in enumerate(missing.items(), start=1):
            publisher.publish(window, snapshot)
            advance(done)

    def _version(self, windows: Sequence[Window]) -> Version:
        """The last training if it was the same, or the next one."""
        wanted = Training(expert=self.expert, first=windows[0].index, last=windows[-1].index, pin=self.pin.target)
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
            surface=self.expert.surface,
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
        covered = [each["coverage/fresh"] + each["coverage/stale"] for each in metrics.values()]
        outcome = {
            "gain": dataclasses.asdict(measured) | {"verdict": measured.verdict} if measured else None,
            "coverage": sum(covered) / len(covered),
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


def pin(registry: Registry, name: str, *, lineage: str) -> Pin:
    """The expert's pin. A new expert follows the lineage; an old one stays where it was put."""
    if name in pins.experts(registry.root):
        return registry.pinned(name)
    return registry.pin(name, lineage=lineage)


def _reads(pin: Pin, snapshot: str) -> bool:
    lineage, version = pins.parse_snapshot_name(snapshot)
    return lineage == pin.lineage and pin.version in (None, version)
