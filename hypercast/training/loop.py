"""The one train loop: predict a whole window, then train on it, then checkpoint. Learners give it their steps."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pydantic

from hypercast.training import checkpoint
from streaming.config import Config as BaseConfig
from streaming.dataset import Window

Batch = TypeVar("Batch")


class Learner(Protocol[Batch]):
    """What the loop calls. Every method is deterministic in the learner's state and the window."""

    def evaluate(self, window: Window) -> Mapping[str, float]:
        """Predict the whole window with what was learned before it (law L4), and keep the predictions."""
        ...

    def batches(self, window: Window) -> Iterable[Batch]:
        """Training batches of what became known in the window (law L2), in time order."""
        ...

    def step(self, batch: Batch) -> Mapping[str, float]:
        """One update; returns the losses."""
        ...

    def finish(self, window: Window) -> Mapping[str, float]:
        """What follows the window's last update, before the checkpoint: publishing, counters."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything the next window depends on: weights, optimisers, random streams."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        ...


Keep = Callable[[Window, Mapping[str, Any]], Mapping[str, Any]]


class ContinualTrainer(Generic[Batch]):
    """Runs a learner over windows, one checkpoint a window. A killed run continues with the same bits.

    Args:
        checkpoints: folder.
        keep: what else the checkpoint of a window is to carry, as JSON values, given what that of the window before
            carries: where its data came from, say. It is one file with the weights, and so never apart from them.
    """

    class Config(BaseConfig):
        """Attributes: ``epochs``, passes over each window (1: every event is trained on once)."""

        epochs: int = pydantic.Field(default=1, ge=1)

    def __init__(self, *, config: Config, learner: Learner[Batch], checkpoints: Path, keep: Keep | None = None) -> None:
        self.config = config
        self.learner = learner
        self.checkpoints = checkpoints
        self.kept: Mapping[str, Any] = {}
        self._keep = keep
        self.metrics: dict[int, dict[str, float]] = {}
        if checkpoint.latest(checkpoints) is not None:
            self._resume()

    @property
    def cursor(self) -> int | None:
        """Index of the last window that is done, None before the first."""
        return max(self.metrics, default=None)

    def run_window(self, window: Window) -> dict[str, float]:
        """Evaluate, train, checkpoint; returns the window's metrics. A window that is done only returns them."""
        if window.index in self.metrics:
            return self.metrics[window.index]
        if self.cursor is not None and window.index < self.cursor:
            raise ValueError(f"window {window.index} was skipped: the learner has already trained on {self.cursor}")
        metrics = dict(self.learner.evaluate(window))
        losses: dict[str, list[float]] = defaultdict(list)
        for _ in range(self.config.epochs):
            for batch in self.learner.batches(window):
                for name, value in self.learner.step(batch).items():
                    losses[name].append(value)
        metrics |= {name: sum(values) / len(values) for name, values in losses.items()}
        metrics |= self.learner.finish(window)
        self.metrics[window.index] = metrics
        self._save(window)
        return metrics

    def _save(self, window: Window) -> None:
        tensors, skeleton = checkpoint.pack(self.learner.state_dict())
        state = {"learner": skeleton, "metrics": {str(index): values for index, values in self.metrics.items()}}
        if self._keep is not None:
            self.kept = self._keep(window, self.kept)
            state["kept"] = self.kept
        checkpoint.save(self.checkpoints, tensors=tensors, state=state, step=window.index)

    def _resume(self) -> None:
        saved = checkpoint.load(self.checkpoints)
        self.learner.load_state_dict(checkpoint.unpack(saved.tensors, saved.state["learner"]))
        self.metrics = {int(index): values for index, values in saved.state["metrics"].items()}
        self.kept = saved.state.get("kept", {})
