"""Platform runs that differ in one thing each, in folders of their own; what is done is not done again.

::

    WORK/base/                     a run as its file says
    WORK/staleness_4/              the same with experts whose teacher is four windows behind

Foundation models that differ in how they publish only are trained once: a variant begins with a copy of the base's
snapshots and checkpoints, and with its log, or one that is published again. Of a variant that has run to its end only
what it predicted stays: snapshots, log and checkpoints of all would fill a disk.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import study_teacher
from hypercast.cli.main import shipped_config
from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.platform import FLOPS_FILE, Platform
from streaming import config as configuration
from streaming.files import write_directory

BASE = "base"
TRAINED = ("checkpoints/foundation", "probe")
PUBLISHED = ("registry", "tae_log")
NEEDED_ONCE = (*PUBLISHED, "checkpoints", "experts")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is otherwise than in the base.

    Attributes:
        changes: keys of the platform file, with dots, and their values.
        coverage: share of the examples that the log has.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    coverage: float = 1.0


def changed(config: PlatformConfig, changes: Mapping[str, Any]) -> PlatformConfig:
    """``config`` with ``changes``, checked as a file would be."""
    values = config.model_dump(mode="json")
    for key, value in changes.items():
        *path, last = key.split(".")
        place = values
        for name in path:
            place = place[name]
        place[last] = value
    return PlatformConfig.model_validate(values)


def shipped(data: Path | None, name: str = "complete_journey") -> PlatformConfig:
    """The configuration of the full run, or another by name, on the data set at ``data`` if that is given."""
    config = configuration.load(shipped_config(f"platform/{name}.yaml"), PlatformConfig)
    return config if data is None else changed(config, {"dataset": {"path": str(data)}})


def run_to_end(config: PlatformConfig) -> Path:
    """The folder of the run; one that is at its end is left as it is.

    Raises:
        ConfigError: the folder holds a run of another configuration.
    """
    platform = Platform(config)
    if not (config.run / FLOPS_FILE).exists():
        name = config.run.name
        platform.run(lambda message, share: _logger.info("%s, %s (%.0f %%)", name, message, 100 * share))
    return config.run


def finished(base: PlatformConfig, name: str, variant: Variant, *, work: Path, source: Path | None = None) -> Path:
    """The folder of the run of ``base`` as ``variant`` says, after it has run to its end; a second call only looks.

    ``source``: folder of the base's own run; ``work``'s if not given.

    Raises:
        ConfigError: the folder holds another variant's run.
    """
    config = changed(base, {**variant.changes, "run": str(work / name), "name": f"{base.name}-{name}"})
    if name != BASE and not config.run.exists() and _trained_alike(base, config):
        write_directory(config.run, lambda partial: _begin(source or work / BASE, partial, base, config, variant))
    _logger.info("%s: %s", name, variant)
    run_to_end(config)
    if name != BASE:
        for folder in NEEDED_ONCE:
            shutil.rmtree(config.run / folder, ignore_errors=True)
    return config.run


def _trained_alike(one: PlatformConfig, other: PlatformConfig) -> bool:
    """Whether both would train the same foundation model."""

    def of(config: PlatformConfig) -> tuple[Any, ...]:
        return config.foundation.model_copy(update={"publisher": None}), config.dataset, config.seeds[0]

    return of(one) == of(other)


def _begin(source: Path, run: Path, base: PlatformConfig, config: PlatformConfig, variant: Variant) -> None:
    for name in TRAINED:
        if (source / name).is_dir():
            shutil.copytree(source / name, run / name)
    if _published_alike(base, config):
        for name in PUBLISHED if variant.coverage == 1 else PUBLISHED[:1]:
            shutil.copytree(source / name, run / name)
    else:
        study_teacher.publish_again(source, config, run=run)
    if variant.coverage < 1:
        study_teacher.thin(
            base.log.build(source / "tae_log"),
            config.log.build(run / "tae_log"),
            Registry(run / "registry"),
            share=variant.coverage,
            seed=config.seeds[0],
        )


def _published_alike(one: PlatformConfig, other: PlatformConfig) -> bool:
    return (one.publisher(), one.expert.delays) == (
        other.publisher(),
        other.expert.delays,
    )
