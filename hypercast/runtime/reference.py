"""Boosted trees beside a finished run, and the mean of trees and teacher, as further arms of its predictions.

::

    RUN/reference/lightgbm/predictions/SURFACE/window=00012.parquet
"""

import os
from collections.abc import Callable
from pathlib import Path

from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.ownership import own
from hypercast.runtime.plan import PATIENCE, run_lock
from hypercast.runtime.stream import dataset_of
from streaming import config as configuration
from transfer import predictions
from transfer.gain import LIGHTGBM
from transfer.reference.blend import add_blended
from transfer.reference.boosting import Boosting
from transfer.reference.join import has_arm, join_arm

REFERENCE = "reference"


def add_trees(run: Path, *, progress: Callable[[str, float], None], source: Path | None = None) -> None:
    """Let LightGBM predict the windows that ``run`` has predicted, and add the arms ``lightgbm`` and ``blended`` to its
    predictions; nothing if they are there.

    Args:
        run: the run's folder.
        source: where LightGBM's predictions are, or go if they are not there yet; in the run folder by default. They do
            not depend on the run, so that several runs over one data set can share them.

    Raises:
        ConfigError: LightGBM is not installed, or ``run`` is no run.
        DataError: ``source`` is of another data set.
        OwnershipError: another process works in the run folder.
    """
    with own(run_lock(run), patience=PATIENCE):
        _add_trees(run, progress, source or run / REFERENCE / LIGHTGBM)


def _add_trees(run: Path, progress: Callable[[str, float], None], source: Path) -> None:
    if not has_arm(run, arm=LIGHTGBM):
        config = configuration.load(run / "platform.yaml", PlatformConfig)
        workspace = config.workspace(dataset_of(config, run))
        surfaces = predictions.surfaces(run)
        last = max(window for surface in surfaces for window in predictions.windows(run, surface))
        if not all(predictions.path_of(source, surface, last).is_file() for surface in surfaces):
            trees = Boosting.Config(threads=os.cpu_count() or 1).build(
                workspace=workspace, task=workspace.plan.tasks[0].name, seed=0, run=source
            )
            trees.predict_all([each for each in workspace.dataset.windows if each.index <= last], progress)
        join_arm(run, source, arm=LIGHTGBM)
    add_blended(run)
