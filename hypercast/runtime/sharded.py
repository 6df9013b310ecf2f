"""The foundation model's job on several workers of Ray Train, window by window as one process would do it.

::

    RUN/sharding.json                    which worker holds which piece of which table
    RUN/checkpoints/foundation_sharded/  what the workers go on from, of any number
    RUN/checkpoints/foundation/          once all windows are done: what one process goes on from
    RUN/ray/                             Ray Train's own notes

Worker 0 publishes and releases. A worker that dies takes the others with it; Ray Train starts all of them anew, and
they go on from the last checkpoint. On a cluster all machines see the run folder and the data set under the same paths.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydantic
import torch

from foundation.publish import Publisher
from foundation.sharded import accelerator, plan
from foundation.sharded.batch import rows_asked, tables_of
from foundation.sharded.config import Sharding
from foundation.sharded.group import WAIT_SECONDS, Group
from foundation.sharded.steps import ShardedLearner
from foundation.sharded.trainer import ShardedTrainer
from hypercast.errors import CheckpointError
from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import FoundationJob
from hypercast.runtime.online import OnlineFeed
from hypercast.runtime.ownership import own
from hypercast.runtime.plan import PATIENCE, run_lock
from hypercast.runtime.sharded_ray import brings_ray, ray_for, scaling_of
from hypercast.runtime.stream import workspace_of
from hypercast.training import checkpoint
from hypercast.training.memory import keep_freed_memory
from streaming import files
from streaming.dataset import Dataset
from streaming.errors import ConfigError, UserError

PLAN_FILE = "sharding.json"


Progress = Any


class WorkersFailedError(UserError):
    """Workers have died more often than ``sharding.max_failures`` allows."""


class ShardedFoundationJob(FoundationJob):
    """One worker's part of :class:`FoundationJob`; all workers call :meth:`publish` and :meth:`run_window` in step."""

    def __init__(self, config: PlatformConfig, run: Path, group: Group) -> None:
        torch.set_num_threads(config.threads)
        keep_freed_memory()
        self.run = run
        self.group = group
        self.workspace = workspace_of(config, run)
        self.delays = [delay for delay in config.expert.delays if delay]
        self.feed = None
        publisher = None
        if group.leads:
            publisher = Publisher(
                config=config.publisher(),
                model=config.foundation.model,
                workspace=self.workspace,
                registry=Registry(run / "registry"),
                log=config.log.build(run / "tae_log"),
                probe=run / "probe",
            )
            self.publisher = publisher
            if config.online is not None:
                self.feed = OnlineFeed(
                    config=config.online, folder=run / "online", publisher=publisher, workspace=self.workspace
                )
        learner = ShardedLearner(
            config=config.foundation,
            workspace=self.workspace,
            publisher=publisher,
            seed=config.seeds[0],
            group=group,
        )
        self.learner = learner
        self.trainer: Any = ShardedTrainer(
            config=config.foundation.trainer,
            learner=learner,
            checkpoints=run / "checkpoints" / "foundation_sharded",
            group=group,
        )
        if group.leads:
            files.write_text(run / PLAN_FILE, plan.to_json(learner.tables.pieces, workers=group.size))

    def publish(self, window: int) -> None:
        """As one process does, on the leader; the others help to release the untrained model."""
        if window not in self.trainer.metrics:
            self.learner.prepare(self.workspace.dataset.window(window))
        if self.group.leads:
            super().publish(window)

    def hand_over(self) -> None:
        """Save what one process goes on from: the leader gathers it, so that the run's other jobs find it."""
        state = self.learner.state_dict()
        if not self.group.leads:
            return
        tensors, skeleton = checkpoint.pack(state)
        metrics = {str(index): values for index, values in self.trainer.metrics.items()}
        checkpoint.save(
            self.run / "checkpoints" / "foundation",
            tensors=tensors,
            state={"learner": skeleton, "metrics": metrics},
            step=self.trainer.cursor,
        )


def train(config: PlatformConfig, progress: Progress) -> dict[str, Any]:
    """Train on every window by the workers that ``config.foundation.sharding`` asks for; resumes after a kill.

    Args:
        config: of a platform whose data set is there.
        progress: gets a message and the share of windows done.

    Returns:
        facts of the run: ``snapshot`` released last, ``windows`` done.

    Raises:
        WorkersFailedError: see there.
        OwnershipError: another process runs in this folder.
    """
    from ray.train import FailureConfig, RunConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    sharding = config.foundation.sharding or Sharding()
    if config.stream is not None:
        raise ConfigError("sharding: windows of a stream are sealed as they are trained on, by `hypercast run`")
    run = config.run.absolute()
    _require_no_process_ahead(run)
    windows = [window.index for window in Dataset.open(config.dataset.path).windows[: config.windows]]
    planned(config)  # or says what does not fit, before any worker is started
    if brings_ray(config):
        accelerator.require(sharding.accelerator, workers=sharding.workers, gpus=torch.cuda.device_count())
    described = config.model_copy(update={"foundation": config.foundation.model_copy(update={"sharding": sharding})})
    with own(run_lock(run), patience=PATIENCE), ray_for(sharding, config), _told(run, windows, progress):
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "config": described.model_dump(mode="json"),
                "run": str(run),
                "data": str(config.dataset.path.absolute()),
                "accelerator": sharding.accelerator,
            },
            torch_config=TorchConfig(backend=accelerator.BACKENDS[sharding.accelerator], timeout_s=WAIT_SECONDS),
            scaling_config=scaling_of(sharding, threads=config.threads),
            run_config=RunConfig(
                name="foundation",
                storage_path=str(run / "ray"),
                failure_config=FailureConfig(max_failures=sharding.max_failures),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise WorkersFailedError(
                f"{run}: the foundation model's workers failed, and sharding.max_failures: {sharding.max_failures} "
                f"allows no further start. What they said: {str(error)[-2000:]}\nThe last checkpoint is whole: run the "
                "same command again to go on from it."
            ) from error
    latest = Registry(run / "registry").list(config.foundation.publisher.lineage)[-1]
    return {"snapshot": latest.name, "windows": len(windows), "workers": sharding.workers}


def planned(config: PlatformConfig) -> list[plan.Piece]:
    """Which worker is to hold which piece of which table.

    Raises:
        ConfigError: they do not fit, see :func:`foundation.sharded.plan.propose`.
    """
    foundation = config.foundation
    workspace = config.workspace(Dataset.open(config.dataset.path))
    collection = plan.collection_of(
        tables_of(foundation.model.vocabulary.build(workspace.inputs)),
        width=foundation.model.width,
        learning_rate=foundation.optimiser.table_learning_rate,
    )
    sharding = foundation.sharding or Sharding()
    device = torch.device(sharding.accelerator)
    asked = rows_asked(workspace, batch_size=foundation.batch_size, history=foundation.model.history)
    found = plan.propose(collection, sharding, batch_size=foundation.batch_size, device=device, asked=asked)
    return plan.pieces(found, collection)


def with_workers(config: PlatformConfig, workers: int | None) -> PlatformConfig:
    """The platform with so many workers, and otherwise sharded as its file says.

    Raises:
        ConfigError: they cannot share the file's logical shards evenly.
    """
    said = config.foundation.sharding or Sharding()
    if workers is None:
        workers = said.workers
    try:
        sharding = Sharding.model_validate(said.model_dump() | {"workers": workers})
    except pydantic.ValidationError as error:
        raise ConfigError(f"--workers {workers}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    foundation = config.foundation.model_copy(update={"sharding": sharding})
    return config.model_copy(update={"foundation": foundation})


def _work(settings: dict[str, Any]) -> None:
    """What every worker does."""
    import ray.train.torch

    config = PlatformConfig.model_validate(settings["config"])
    dataset = config.dataset.model_copy(update={"path": Path(settings["data"])})
    run = Path(settings["run"])
    device = accelerator.device_of(settings["accelerator"], ray.train.torch.get_device().index or 0)
    job = ShardedFoundationJob(config.model_copy(update={"dataset": dataset, "run": run}), run, Group(device=device))
    for window in job.workspace.dataset.windows[: config.windows]:
        job.publish(window.index)
        ray.train.report({"window": window.index, **job.run_window(window.index)})
    job.hand_over()


def _require_no_process_ahead(run: Path) -> None:
    """One process goes on from what workers hand over; workers do not go on from one process."""
    alone, together = (_done(run, name) for name in ("foundation", "foundation_sharded"))
    if alone is not None and (together is None or together < alone):
        raise CheckpointError(
            f"{run}: one process has trained this run's foundation model to window {alone}, and several workers cannot "
            "go on from there. Give another folder: hypercast foundation train PLATFORM.yaml --run runs/second"
        )


def _done(run: Path, name: str) -> int | None:
    """The last window whose checkpoint is there."""
    folder = checkpoint.latest(run / "checkpoints" / name)
    return None if folder is None else int(folder.name.removeprefix("step-"))


@contextmanager
def _told(run: Path, windows: list[int], progress: Progress) -> Iterator[None]:
    """Tell ``progress`` of every window whose checkpoint is there: what a restart would not do again."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            done = _done(run, "foundation_sharded")
            if done in windows:
                progress(f"window {done}", (windows.index(done) + 1) / len(windows))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
