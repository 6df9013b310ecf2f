"""Platform runs that differ in one thing each, in folders of their own; what is done is not done again.

::

    WORK/base/                     a run as its file says
    WORK/staleness_4/              the same with experts whose teacher is four windows behind

A variant with the same foundation model begins with a copy of the base's snapshots, log and checkpoints, so that only
experts are trained.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.platform import Platform
from streaming.files import write_directory

BASE = "base"
TEACHER = ("registry", "tae_log", "checkpoints/foundation", "probe")
_logger = logging.getLogger(__name__)

Changes = Mapping[str, Any]
"""Keys of a platform file, with dots, and their values."""


def changed(config: PlatformConfig, changes: Changes) -> PlatformConfig:
    """``config`` with ``changes``, checked as a file would be."""
    values = config.model_dump(mode="json")
    for key, value in changes.items():
        *path, last = key.split(".")
        place = values
        for name in path:
            place = place[name]
        place[last] = value
    return PlatformConfig.model_validate(values)


def finished(base: PlatformConfig, name: str, changes: Changes, *, work: Path) -> Path:
    """The folder of the run of ``base`` with ``changes``, after it has run to its end; a second call only looks."""
    config = changed(base, {**changes, "run": str(work / name), "name": f"{base.name}-{name}"})
    if name != BASE and _same_teacher(base, config) and not config.run.exists():
        _copy_teacher(work / BASE, config.run)
    _logger.info("%s: %s", name, dict(changes))
    Platform(config).run(lambda message, share: _logger.info("%s, %s (%.0f %%)", name, message, 100 * share))
    return config.run


def _same_teacher(one: PlatformConfig, other: PlatformConfig) -> bool:
    """Whether both would train and publish the same: then what the one has made serves the other."""

    def of(config: PlatformConfig) -> tuple[Any, ...]:
        teacher = config.foundation.model_copy(update={"publisher": config.publisher()})
        return teacher, config.expert.teacher_delay_windows, config.dataset, config.seeds[0]

    return of(one) == of(other)


def _copy_teacher(source: Path, run: Path) -> None:
    def write(partial: Path) -> None:
        for name in TEACHER:
            if (source / name).is_dir():
                shutil.copytree(source / name, partial / name)

    write_directory(run, write)
