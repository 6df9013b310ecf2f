"""Boosted trees beside a finished run, with and without its teacher, as further arms of its predictions.

::

    RUN/reference/lightgbm, RUN/reference/boosted     predictions/SURFACE/window=00012.parquet
"""

import os
from collections.abc import Callable
from pathlib import Path

from experts.boosted import boosted
from hypercast.pins import Pin
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.stream import dataset_of
from streaming import config as configuration
from streaming.workspace import Workspace
from transfer import predictions
from transfer.gain import BOOSTED
from transfer.reference.boosting import LIGHTGBM, Boosting
from transfer.reference.join import has_arm, join_arm

Progress = Callable[[str, float], None]
REFERENCE = "reference"


def add_lightgbm(run: Path, *, progress: Progress, source: Path | None = None) -> None:
    """Let LightGBM predict the windows that ``run`` has predicted, and add the arm to its predictions; nothing if it is
    there.

    Args:
        run: the run's folder.
        source: where the predictions are, or go if they are not there yet; in the run folder by default. They do not
            depend on the run, so that several runs over one data set can share them.

    Raises:
        ConfigError: LightGBM is not installed, or ``run`` is no run.
        DataError: ``source`` is of another data set.
    """
    config = configuration.load(run / "platform.yaml", PlatformConfig)
    workspace = Workspace(dataset_of(config, run))
    source = source or run / REFERENCE / LIGHTGBM

    def build() -> Boosting:
        return _trees().build(workspace=workspace, task=_task(workspace), seed=0, run=source)

    _add(run, source, arm=LIGHTGBM, workspace=workspace, build=build, progress=progress)


def add_boosted(run: Path, *, progress: Progress) -> None:
    """The same with trees that grow on the logit of the run's teacher, as its experts read it; the run's first seed.

    Raises:
        ConfigError: as above.
    """
    config = configuration.load(run / "platform.yaml", PlatformConfig)
    workspace = Workspace(dataset_of(config, run))
    source = run / REFERENCE / BOOSTED

    def build() -> Boosting:
        return boosted(
            _trees(),
            workspace=workspace,
            task=_task(workspace),
            seed=config.seeds[0],
            run=source,
            log=config.log.build(run / "tae_log"),
            pin=Pin(expert=BOOSTED, lineage=config.foundation.publisher.lineage, version=None),
            embedding=config.foundation.model.representation,
            delay=config.expert.teacher_delay_windows,
        )

    _add(run, source, arm=BOOSTED, workspace=workspace, build=build, progress=progress)


def _add(
    run: Path, source: Path, *, arm: str, workspace: Workspace, build: Callable[[], Boosting], progress: Progress
) -> None:
    if has_arm(run, arm=arm):
        return
    last = max(window for surface in predictions.surfaces(run) for window in predictions.windows(run, surface))
    windows = [window for window in workspace.dataset.windows if window.index <= last]
    if not all(predictions.path_of(source, s, last).is_file() for s in predictions.surfaces(run)):
        build().predict_all(windows, progress)
    join_arm(run, source, arm=arm)


def _trees() -> Boosting.Config:
    return Boosting.Config(threads=os.cpu_count() or 1)


def _task(workspace: Workspace) -> str:
    return workspace.inputs.tasks[0]
