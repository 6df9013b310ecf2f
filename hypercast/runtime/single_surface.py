"""The arm ``fm_single_surface``: a foundation model trained on one surface alone, judged by its own head.

It is of the same kind and size, goes over the same windows under the same laws, and publishes to the run's registry and
TAE log under a lineage of its own, so that experts could be pinned to it as well::

    RUN/registry, RUN/tae_log                          lineage FM_SURFACE
    RUN/checkpoints/FM_SURFACE
    RUN/reference/fm_single_surface/predictions/SURFACE/window=00012.parquet
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from foundation.publish import Publisher
from foundation.steps import FoundationLearner
from hypercast.pins import Pin, check_name
from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.ownership import own
from hypercast.runtime.plan import PATIENCE, run_lock
from hypercast.runtime.stream import dataset_of
from hypercast.store.tae_log import TaeLog
from hypercast.training.loop import ContinualTrainer
from streaming.dataset import Window
from streaming.errors import ConfigError
from transfer import predictions
from transfer.gain import FM_SINGLE_SURFACE
from transfer.predictions import Column, prediction_table
from transfer.reference.join import join_arm
from transfer.reference.single_surface import SurfaceWorkspace


class SingleSurfaceJob:
    """Publishes each window, writes down what the head predicts of it, and trains on it; resumes on construction.

    Args:
        config: of the platform; its foundation model is trained, under another lineage.
        run: the platform's run folder.
        surface: the only one that the model gets to see.

    Raises:
        ConfigError: the data set has no such surface.
        RegistryError: the surface's name cannot be part of a lineage's.
    """

    def __init__(self, config: PlatformConfig, run: Path, surface: str) -> None:
        torch.set_num_threads(config.threads)
        self.run = run
        self.seed = config.seeds[0]
        self.workspace = SurfaceWorkspace(dataset_of(config, run), surface)
        lineage = check_name(f"{config.foundation.publisher.lineage}_{surface}", what="lineage")
        publisher = config.foundation.publisher.model_copy(update={"lineage": lineage})
        foundation = config.foundation.model_copy(update={"publisher": publisher})
        self.log: TaeLog = config.log.build(run / "tae_log")
        self.pin = Pin(expert=FM_SINGLE_SURFACE, lineage=lineage, version=None)
        self.width = config.foundation.model.representation
        learner = FoundationLearner(
            config=foundation,
            workspace=self.workspace,
            publisher=Publisher(
                config=publisher,
                model=foundation.model,
                workspace=self.workspace,
                registry=Registry(run / "registry"),
                log=self.log,
            ),
            seed=self.seed,
        )
        self.trainer = ContinualTrainer(
            config=foundation.trainer, learner=learner, checkpoints=run / "checkpoints" / lineage
        )

    def run_window(self, window: Window) -> dict[str, float]:
        """Publish, train, and write the predictions that were published before training; returns metrics."""
        metrics = self.trainer.run_window(window)
        requests = self.workspace.requests(window.index)
        tasks = self.workspace.inputs.tasks
        published = self.log.read(
            window=window.index,
            pin=self.pin,
            request_id=requests.request_id[requests.owner],
            candidate_id=requests.candidate_id,
            time=requests.time[requests.owner],
            width=self.width,
            tasks=tasks,
            requests_digest=self.workspace.dataset.requests_digest(window.index),
        )
        probability_CT = 1 / (1 + np.exp(-published.teacher_logit))
        columns = {Column(task, FM_SINGLE_SURFACE, self.seed): probability_CT[:, t] for t, task in enumerate(tasks)}
        table = prediction_table(self.workspace.outcomes(requests), columns, tasks=tasks)
        predictions.write(reference_folder(self.run), surface=self.workspace.surface, window=window.index, table=table)
        return metrics


def reference_folder(run: Path) -> Path:
    """Where the arm's predictions lie before they join the run's."""
    return run / "reference" / FM_SINGLE_SURFACE


def train_single_surfaces(config: PlatformConfig, run: Path, progress: Callable[[str, float], None]) -> None:
    """Train one model a surface over the windows that the platform runs, and join what they predict to the run.

    Resumes where it was killed.

    Raises:
        ConfigError: ``config`` has policies for late labels, or surfaces that ask for other windows: it would be
            compared with models that have learned, or answer, something else.
        DataError: the run in ``run`` has predictions of a window that ``config`` does not run.
        OwnershipError: another process works in the run folder.
    """
    if config.labels or config.asked_days:
        raise ConfigError(
            f"{run}: {FM_SINGLE_SURFACE} learns from labels once they are known and answers for the whole attribution "
            "window; this run has `labels` or `asked_days`. Compare on a run without: leave both out of its file."
        )
    with own(run_lock(run), patience=PATIENCE):
        dataset = dataset_of(config, run)
        windows, surfaces = dataset.windows[: config.windows], dataset.config.surfaces
        for number, surface in enumerate(surfaces):
            job = SingleSurfaceJob(config, run, surface)
            for done, window in enumerate(windows, start=1):
                job.run_window(window)
                share = (number + done / len(windows)) / len(surfaces)
                progress(f"{FM_SINGLE_SURFACE} {surface}, window {window.index}", share)
        join_arm(run, reference_folder(run), arm=FM_SINGLE_SURFACE)
