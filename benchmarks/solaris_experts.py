"""Experts that read what speculation would have given them, beside those that read live vectors and those without any.

::

    WORK/live/                  arms ``control`` and ``tae`` on the teacher's log: predictions, checkpoints
    WORK/budget_025_user/       arm ``tae`` on the log that lies there
    WORK/floor/                 ``control`` with another seed
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.solaris_rounds import SHARES, variant
from experts.steps import SurfaceLearner
from hypercast.pins import Pin
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import FoundationJob
from hypercast.serving.speculation.misses import MISSES
from hypercast.store.tae_log import TaeLog
from hypercast.training.loop import ContinualTrainer
from transfer import predictions, sums
from transfer.gain import CONTROL, TAE, Span
from transfer.sums import UserSums

LIVE, FLOOR = "live", "floor"
VARIANTS = [variant(share, miss) for share in SHARES for miss in MISSES]
_WIDE = ("loss", "weight_loss", "predicted", "histogram")
BySurface = Mapping[str, UserSums]
_logger = logging.getLogger(__name__)


def train(job: FoundationJob, config: PlatformConfig, *, work: Path, surfaces: Sequence[str]) -> None:
    """Run the experts of ``surfaces`` over every window, once for each log; goes on where it was stopped."""
    other = config.model_copy(update={"seeds": [max(config.seeds) + 1]})
    _train(job, other, run=work / FLOOR, log=job.publisher.log, arms=[CONTROL], surfaces=surfaces)
    _train(job, config, run=work / LIVE, log=job.publisher.log, arms=[CONTROL, TAE], surfaces=surfaces)
    for name in VARIANTS:
        _train(job, config, run=work / name, log=TaeLog(work / name / "tae_log"), arms=[TAE], surfaces=surfaces)


def _train(
    job: FoundationJob, config: PlatformConfig, *, run: Path, log: TaeLog, arms: list[str], surfaces: Sequence[str]
) -> None:
    expert = SurfaceLearner.Config.model_validate(config.expert.model_dump() | {"arms": arms})
    for surface in surfaces:
        learner = SurfaceLearner(
            config=expert,
            surfaces=[surface],
            workspace=job.workspace,
            log=log,
            pin=Pin(expert=surface, lineage=job.publisher.config.lineage),
            embedding=config.foundation.model.representation,
            seeds=config.seeds,
            run=run,
        )
        trainer = ContinualTrainer(config=expert.trainer, learner=learner, checkpoints=run / "checkpoints" / surface)
        for window in job.workspace.dataset.windows:
            trainer.run_window(window)
        _logger.info("%s, %s", run.name, surface)


def read(job: FoundationJob, *, work: Path, surfaces: Sequence[str], span: Span) -> BySurface:
    """Sums of every surface over ``span``, users to develop on; arms are ``control``, ``live`` and the variants.

    ``control`` has one seed more, from which the noise floor follows.
    """
    task = job.workspace.dataset.config.tasks[0].name

    def said(name: str, surface: str, window: int) -> UserSums:
        return sums.of_window(work / name, surface=surface, window=window, task=task)

    return _read((LIVE, *VARIANTS, FLOOR), said, surfaces=surfaces, span=span)


def read_covered(job: FoundationJob, *, work: Path, surfaces: Sequence[str], span: Span, share: int) -> BySurface:
    """The same of ``control``, ``live`` and the variant without fillers, on candidates covered at ``share`` only."""
    task, alone = job.workspace.dataset.config.tasks[0].name, variant(share, "zeros")
    covered = {segment.window: segment for segment in TaeLog(work / alone / "tae_log").segments()}

    def said(name: str, surface: str, window: int) -> UserSums:
        table = predictions.read(work / name, surface=surface, window=window)
        row = covered[window].locate(
            request_id=table["request_id"].to_numpy(), candidate_id=table["candidate_id"].to_numpy()
        )
        return sums.accumulate(table if row is None else table.filter(row >= 0), task=task)

    return _read((LIVE, alone), said, surfaces=surfaces, span=span)


def _read(
    names: Sequence[str], said: Callable[[str, str, int], UserSums], *, surfaces: Sequence[str], span: Span
) -> BySurface:
    """What runs of those names said, with the name as the arm of what has an embedding."""
    found = {}
    for surface in surfaces:
        parts = []
        for name in names:
            windows = [said(name, surface, window) for window in range(span.first, span.last + 1)]
            each = sums.combine(windows).select(untouched=False)
            kept = [column for column in each.columns if column.arm in (CONTROL, TAE)]
            columns = [replace(column, arm=name) if column.arm == TAE else column for column in kept]
            parts.append(replace(each.only(kept), columns=tuple(columns)))
        wide = {field: np.concatenate([getattr(part, field) for part in parts], axis=1) for field in _WIDE}
        found[surface] = replace(parts[0], columns=tuple(c for part in parts for c in part.columns), **wide)
    return found
