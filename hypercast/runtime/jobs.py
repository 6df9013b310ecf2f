"""The two kinds of jobs of a platform; each owns its state, checkpoints it, and resumes on construction."""

from pathlib import Path

import torch

from experts.steps import SurfaceLearner
from foundation.publish import Publisher
from foundation.steps import FoundationLearner
from hypercast.errors import RegistryError
from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.online import OnlineFeed
from hypercast.runtime.stream import keeper, workspace_of
from hypercast.serving.logs.served_first import ServedFirst
from hypercast.store.tae_log import TaeLog
from hypercast.training.loop import ContinualTrainer
from hypercast.training.memory import keep_freed_memory
from streaming.dataset import Window
from streaming.workspace import Workspace
from transfer.health import of_surface


class FoundationJob:
    """Publishes each window and trains on it."""

    def __init__(self, config: PlatformConfig, run: Path) -> None:
        torch.set_num_threads(config.threads)
        keep_freed_memory()
        self.workspace = workspace_of(config, run)
        self.publisher = Publisher(
            config=config.publisher(),
            model=config.foundation.model,
            workspace=self.workspace,
            registry=Registry(run / "registry"),
            log=config.log.build(run / "tae_log"),
            probe=run / "probe",
        )
        self.delays = [delay for delay in config.expert.delays if delay]
        self.learner = FoundationLearner(
            config=config.foundation, workspace=self.workspace, publisher=self.publisher, seed=config.seeds[0]
        )
        self.feed = (
            OnlineFeed(config=config.online, folder=run / "online", publisher=self.publisher, workspace=self.workspace)
            if config.online is not None
            else None
        )
        self.trainer = ContinualTrainer(
            config=config.foundation.trainer,
            learner=self.learner,
            checkpoints=run / "checkpoints" / "foundation",
            keep=keeper(run, "foundation", self.workspace),
        )

    def publish(self, window: int) -> None:
        """Write the window's TAEs, by weights that have seen nothing of it; nothing if the window is done.

        A window that was done before a restart is in the log, and the snapshot that wrote it may have been pruned. The
        online store catches up in any case, if the platform has one. A delayed teacher publishes beside the newest.
        """
        current = self.workspace.dataset.window(window)
        if window not in self.trainer.metrics:
            self.learner.prepare(current)
            self.publisher.publish(current)
            for delay in self.delays:
                self.publisher.publish_delayed(current, delay)
            for snapshot in self.publisher.pinned_for(current):
                self.publisher.publish(current, snapshot)
        if self.feed is not None:
            self.feed.feed(current)

    def run_window(self, window: int) -> dict[str, float]:
        """Train on the window and release the next snapshot; returns metrics."""
        return self.trainer.run_window(self.workspace.dataset.window(window))

    def flops(self, window: int) -> float:
        """Floating-point operations for one candidate, on the first requests of the last window that has any."""
        return self.learner.flops(_busy(self.workspace, window))


class ExpertJob:
    """All arms of some surfaces' experts; ``surfaces`` holds a group of them that share one whole, or not at all."""

    def __init__(self, config: PlatformConfig, run: Path, surfaces: list[str]) -> None:
        torch.set_num_threads(config.threads)
        keep_freed_memory()
        # With label rates, if experts read any: so learners share the counts, which are the same for all surfaces.
        self.workspace = workspace_of(config, run).with_label_rates(config.expert.label_rates)
        registry = Registry(run / "registry")
        log = learned_log(config, run)
        experts = config.experts_of(self.workspace.inputs.surfaces)
        self.learners = {
            name: self._learner(config, run, group, log=log, registry=registry)
            for name, group in experts.items()
            if set(group) & set(surfaces)
        }
        if given := sorted({name for learner in self.learners.values() for name in learner.surfaces} ^ set(surfaces)):
            raise ValueError(f"a job of experts takes whole groups of the data set's surfaces: {given} of {surfaces}")
        self.trainers = {
            name: ContinualTrainer(
                config=config.expert.trainer,
                learner=learner,
                checkpoints=run / "checkpoints" / "experts" / name,
                keep=keeper(run, name, self.workspace, surface=next(iter(learner.surfaces.values()))),
            )
            for name, learner in self.learners.items()
        }

    def run_window(self, window: int, published: None) -> dict[str, dict[str, float]]:
        """Predict the window with every arm, then train on it; returns metrics by surface.

        Losses and collisions are those of the surface's expert, which others may share.

        ``published`` is what :meth:`FoundationJob.publish` returned: waiting for it is what orders the two jobs.
        """
        current = self.workspace.dataset.window(window)
        metrics = {name: trainer.run_window(current) for name, trainer in self.trainers.items()}
        experts = self.learners.items()
        return {surface: of_surface(metrics[name], surface) for name, each in experts for surface in each.surfaces}

    def export(self, folder: Path) -> dict[str, Path]:
        """Write every expert to ``folder/SURFACE/window=N/ARM``, N being the last it learned; folders by surface."""
        exported: dict[str, Path] = {}
        for name, learner in self.learners.items():
            for surface in learner.surfaces:
                exported[surface] = folder / surface / f"window={self.trainers[name].cursor:05d}"
                learner.export(exported[surface])
        return exported

    def flops(self, window: int) -> dict[str, float]:
        """Floating-point operations of every arm for one candidate; empty if no surface has any in the window."""
        busy = _busy(self.workspace, window)
        counted = (learner.flops(busy) for learner in self.learners.values())
        return next((flops for flops in counted if flops), {})

    def _learner(
        self, config: PlatformConfig, run: Path, surfaces: list[str], *, log: TaeLog, registry: Registry
    ) -> SurfaceLearner:
        ties = [registry.tie(surface, lineage=config.foundation.publisher.lineage) for surface in surfaces]
        if len({pin.target for pin in ties}) > 1:
            found = ", ".join(f"{pin.expert} to {pin.target}" for pin in ties)
            raise RegistryError(
                f"{registry.root}: surfaces that share an expert are pinned apart: {found}. Give them one pin: "
                f"hypercast expert pin {surfaces[0]} --lineage {config.foundation.publisher.lineage} --run {run}, with "
                "--version N for one snapshot; it pins them all."
            )
        return SurfaceLearner(
            config=config.expert,
            surfaces=surfaces,
            workspace=self.workspace,
            log=log,
            pin=ties[0],
            embedding=config.foundation.model.representation,
            encoding=config.foundation.model.width,
            tower=config.foundation.model.tower_shape(self.workspace.with_label_rates(None).inputs),
            registry=registry,
            seeds=config.seeds,
            run=run,
        )


def learned_log(config: PlatformConfig, run: Path) -> TaeLog:
    """What experts read of the foundation model, as ``learn_from`` says."""
    if config.learn_from == "served":
        return ServedFirst.of_run(run, config=config.log)
    return config.log.build(run / "tae_log")


def _busy(workspace: Workspace, window: int) -> Window:
    """The last window with requests, up to the one of that index; that one if there is none."""
    *earlier, last = [each for each in workspace.dataset.windows if each.index <= window]
    return next((each for each in (last, *reversed(earlier)) if len(workspace.requests(each.index))), last)
