"""What trainings of an expert's file have left, one folder each.

::

    RUN/experts.d/NAME/0001/      one training, named NAME@0001
      training.yaml               the file as it was, the windows, the pin
      checkpoints/  predictions/  sums/
      model/ARM/                  weights of the first seed
      outcome.json                the gain; written last, so that only what is complete can be promoted
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypercast.pins import snapshot_name
from hypercast.runtime import expert_file
from hypercast.runtime.expert_file import ExpertFile
from streaming import config as configuration
from streaming.config import Config
from streaming.errors import DataError
from transfer import gain, predictions, sums
from transfer.gain import CONTROL, Gain
from transfer.sums import UserSums


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

    @property
    def gain(self) -> Gain | None:
        """What the outcome says of it; None before, and where it is not defined."""
        measured = (self.outcome or {}).get("gain")
        return Gain(**{key: value for key, value in measured.items() if key != "verdict"}) if measured else None


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
    return added_up(version.path, surface=expert.surface, task=expert.task, windows=windows)


def added_up(folder: Path, *, surface: str, task: str, windows: Sequence[int]) -> UserSums:
    """The same of the predictions in any run folder."""
    parts = [sums.of_window(folder, surface=surface, window=each, task=task) for each in windows]
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
