"""Boosted trees beside a finished run, with and without its teacher, as further arms of its predictions.

::

    RUN/reference/lightgbm/predictions/SURFACE/window=00012.parquet
    RUN/reference/lightgbm_treated/predictions/SURFACE/window=00012.parquet
"""

import os
from collections.abc import Callable
from pathlib import Path

from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.ownership import own
from hypercast.runtime.plan import PATIENCE, run_lock
from hypercast.runtime.stream import dataset_of
from streaming import config as configuration
from streaming.errors import DataError
from transfer import predictions
from transfer.gain import LIGHTGBM, LIGHTGBM_TREATED
from transfer.reference.blend import add_blended
from transfer.reference.boosting import Boosting
from transfer.reference.join import has_arm, join_arm

REFERENCE = "reference"


def add_trees(
    run: Path, *, progress: Callable[[str, float], None], source: Path | None = None, treated: bool = False
) -> None:
    """Let LightGBM predict the windows that ``run`` has predicted, and add the arms ``lightgbm`` and ``blended`` to its
    predictions; nothing if they are there.

    Args:
        run: the run's folder.
        source: where LightGBM's predictions are, or go if they are not there yet; in the run folder by default. They do
            not depend on the run, so that several runs over one data set can share them.
        treated: whether to add ``lightgbm_treated`` too, trees that read the run's teacher.

    Raises:
        ConfigError: LightGBM is not installed, or ``run`` is no run.
        DataError: ``run`` has predicted nothing, or ``source`` is of another data set.
        OwnershipError: another process works in the run folder.
    """
    config = configuration.load(run / "platform.yaml", PlatformConfig)
    if not predictions.surfaces(run):
        raise DataError(f"{run}: nothing was predicted there yet. Run the platform first: hypercast run PLATFORM.yaml")
    with own(run_lock(run), patience=PATIENCE):
        _join(config, run, progress, LIGHTGBM, source=source or run / REFERENCE / LIGHTGBM)
        add_blended(run)
        if treated:
            _join(config, run, progress, LIGHTGBM_TREATED, source=run / REFERENCE / LIGHTGBM_TREATED)


def _join(config: PlatformConfig, run: Path, progress: Callable[[str, float], None], arm: str, *, source: Path) -> None:
    if has_arm(run, arm=arm):
        return
    workspace = config.workspace(dataset_of(config, run))
    surfaces = predictions.surfaces(run)
    last = max(window for surface in surfaces for window in predictions.windows(run, surface))
    teacher = run if arm == LIGHTGBM_TREATED else None
    # What the teacher says may have changed since these trees predicted; fits to the same rows are taken from disk.
    if teacher or not all(predictions.path_of(source, surface, last).is_file() for surface in surfaces):
        # Trees that read the teacher's logit do better without attributes, which are in it: docs/decisions.md.
        trees = Boosting.Config(threads=os.cpu_count() or 1, categories=teacher is None).build(
            workspace=workspace, task=workspace.plan.tasks[0].name, seed=0, run=source, teacher=teacher
        )
        trees.predict_all([each for each in workspace.dataset.windows if each.index <= last], progress)
    join_arm(run, source, arm=arm)
