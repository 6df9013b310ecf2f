"""What the train loop calls to train the foundation model."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pydantic
import torch

from foundation.hstu.optimiser import ModelOptimiser
from foundation.model import FoundationModel
from foundation.publish import Publisher
from foundation.sharded.config import Sharding
from hypercast.training.flops import flops_per_candidate
from hypercast.training.loop import ContinualTrainer
from hypercast.training.random import get_states, set_states
from streaming.batch import RequestBatch
from streaming.config import Config as BaseConfig
from streaming.dataset import Window
from streaming.labels.order import interleaved
from streaming.workspace import Workspace


class FoundationLearner:
    """Trains on every surface's requests and publishes a snapshot after each window."""

    class Config(BaseConfig):
        """Attributes:

        batch_size: in requests.
        surface_weight: of the surface-specific tasks in the loss.
        precision: of products in training; weights, sums and what is published are float32 always. bfloat16 is faster
            on CPUs with AMX or AVX512-BF16 and on GPUs.
        sharding: how several workers train together (docs/sharded.md); what one process does is not touched by it.
        """

        batch_size: int = pydantic.Field(default=64, ge=1)
        surface_weight: float = pydantic.Field(default=0.2, ge=0)
        precision: Literal["float32", "bfloat16"] = "float32"
        model: FoundationModel.Config = FoundationModel.Config()
        optimiser: ModelOptimiser.Config = ModelOptimiser.Config(learning_rate=3e-3)
        publisher: Publisher.Config = Publisher.Config()
        trainer: ContinualTrainer.Config = ContinualTrainer.Config()
        sharding: Sharding | None = None

        def loss(self, model: FoundationModel, batch: RequestBatch) -> torch.Tensor:
            """The mean over the batch's candidates, in the precision of training."""
            half = self.precision == "bfloat16"
            with torch.autocast(batch.item_C.device.type, dtype=torch.bfloat16, enabled=half):
                return model.loss(model(batch), batch, surface_weight=self.surface_weight)

    def __init__(self, *, config: Config, workspace: Workspace, publisher: Publisher, seed: int) -> None:
        self.config = config
        self.workspace = workspace
        self.publisher = publisher
        self.model = config.model.build(inputs=workspace.inputs, seed=seed).train()
        self.optimiser = config.optimiser.build(self.model)
        self.reader = workspace.reader({"all": (workspace.engagements, config.model.history)})

    def prepare(self, window: Window) -> None:
        """Before anything was trained on, release the untrained model, so that the first window has a snapshot too."""
        if window == self.workspace.dataset.windows[0]:
            with self.optimiser.averaged():
                self.publisher.release(self.model, watermark=window.start, metrics={})

    def evaluate(self, window: Window) -> Mapping[str, float]:
        """Publish the window's TAEs by the newest snapshot that has seen nothing of it."""
        self.prepare(window)
        segment = self.publisher.publish(window)
        rates = self.model.vocabulary.collision_rates(self.reader, self.workspace.requests(window.index))
        return {"published_rows": float(segment.facts.rows), **rates}

    def batches(self, window: Window) -> Iterator[RequestBatch]:
        """Requests whose labels became known in the window: its own and, of tasks with a delay, earlier windows'."""
        size = self.config.batch_size
        learned = [requests for _, requests in self.workspace.learned_in(window)]
        parts = [self.reader.batches(part, size=size, since=window.start, before=window.end) for part in learned]
        counts = [-(-len(part) // size) for part in learned]
        yield from interleaved(list(zip(counts, parts, strict=True)))

    def step(self, batch: RequestBatch) -> Mapping[str, float]:
        loss = self.config.loss(self.model, batch)
        self.optimiser.step(loss)
        return {"train_loss": loss.item()}

    def finish(self, window: Window) -> Mapping[str, float]:
        """Publish the snapshot whose watermark is the window's end, and compare it with the one before."""
        with self.optimiser.averaged():
            snapshot = self.publisher.release(self.model, watermark=window.end, metrics={})
        return {**self.model.vocabulary.statistics(), **self.publisher.compare(snapshot)}

    def flops(self, window: Window) -> float:
        """Floating-point operations for one candidate of the window's first batch, history included."""
        batch = self.reader.batch(self.workspace.requests(window.index).slice(0, self.config.batch_size))
        model = self.publisher.model
        return flops_per_candidate(lambda: model(batch), candidates=len(batch.item_C))

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "dropout": get_states(self.model),
            "released": self.publisher.released,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        set_states(self.model, state["dropout"])
        self.publisher.released = state["released"]
