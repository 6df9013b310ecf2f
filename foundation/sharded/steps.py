"""What the train loop calls to train the foundation model on several workers; each runs the loop, in step.

The leader publishes and writes snapshots, as one process would. The tables lie in pieces on all workers; what is
released is put together on the leader.

Shape legend: L logical shards of this worker, M rows that they look up, D model width.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from foundation.model import FoundationModel
from foundation.publish import Publisher
from foundation.sharded.accelerator import moved
from foundation.sharded.batch import BAGS_OF_GPU, Admission, Part, ShardReader, WorkerBatch, rows_asked
from foundation.sharded.config import Sharding
from foundation.sharded.dense import Reduction, reduction_of
from foundation.sharded.group import Group, in_order
from foundation.sharded.model import DenseModel, ShardLoss
from foundation.sharded.tables import Sent, ShardedTables
from foundation.steps import FoundationLearner
from hypercast.training.distributed_checkpoint import Pieces
from hypercast.training.flops import flops_per_candidate
from hypercast.training.random import get_states
from streaming.dataset import Window
from streaming.prefetch import Prefetch
from streaming.workspace import Workspace

Read = Callable[[Mapping[str, Tensor | Pieces]], Any]
"""Fills tensors in place from a checkpoint."""


@dataclass(kw_only=True)
class Step:
    """A worker batch whose ids are on their way, and the one that follows it."""

    batch: WorkerBatch
    sent: Sent
    following: "Step | None" = None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a snapshot is made of: a model's configuration and its weights by name, without the model."""

    config: FoundationModel.Config
    tensors: dict[str, Tensor]

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors


class ShardedLearner(FoundationLearner):
    """One worker's part of the training. All workers call every method, with the same windows in the same order.

    Args:
        config: with its ``sharding``.
        publisher: the leader's; None elsewhere.
        group: the workers.
    """

    def __init__(
        self,
        *,
        config: FoundationLearner.Config,
        workspace: Workspace,
        publisher: Publisher | None,
        seed: int,
        group: Group,
    ) -> None:
        sharding = config.sharding or Sharding(workers=group.size)
        if sharding.workers != group.size:
            raise ValueError(f"sharding.workers is {sharding.workers}, and {group.size} workers have come")
        each = sharding.logical // group.size
        self.config, self.workspace, self.group, self.sharding = config, workspace, group, sharding
        self.publishing = publisher
        self.released: str | None = None
        self.model: DenseModel = DenseModel(
            config=config.model, inputs=workspace.inputs, seed=seed, device=group.device
        )
        self.loss = ShardLoss(config=config, model=self.model)
        self.reduction: Reduction = reduction_of(self.loss, sharding, group)
        self.optimiser = config.optimiser.build(self.model)
        for weight in self.optimiser.weights:  # as AdamW would at its first step: a checkpoint is read into it
            self.optimiser.dense.state[weight] = {
                "step": torch.zeros((), device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        reader = workspace.reader({"all": (workspace.engagements, config.model.history)})
        bags = BAGS_OF_GPU if group.device.type == "cuda" else None
        self.admission = Admission(vocabulary=self.model.vocabulary, reader=reader, bags=bags)
        self.tables = ShardedTables(
            self.admission.tables,
            width=config.model.width,
            learning_rate=config.optimiser.table_learning_rate,
            sharding=sharding,
            group=group,
            batch_size=config.batch_size,
            asked=rows_asked(workspace, batch_size=config.batch_size, history=config.model.history),
        )
        mine = range(group.rank * each, (group.rank + 1) * each)
        self.reader: Any = ShardReader(reader=reader, prefetch=workspace.prefetch, shards=sharding.logical, mine=mine)

    def prepare(self, window: Window) -> None:
        """Before anything was trained on, release the untrained model, so that the first window has a snapshot too."""
        if window == self.workspace.dataset.windows[0] and self.released is None:
            self._release(watermark=window.start)

    def evaluate(self, window: Window) -> Mapping[str, float]:
        """The leader publishes the window's TAEs by the newest snapshot that has seen nothing of it."""
        self.prepare(window)
        metrics = None
        if self.publishing is not None:
            segment = self.publishing.publish(window)
            requests = self.workspace.requests(window.index)
            rates = self.model.vocabulary.collision_rates(self.admission.reader, requests)
            metrics = {"published_rows": float(segment.facts.rows), **rates}
        return self.group.from_leader(metrics)

    def batches(self, window: Window) -> Iterator[Any]:
        """As one process reads them; ids are admitted, and on their way to the tables' owners, one batch ahead."""
        parts = cast(Iterator[Part], super().batches(window))
        # One thread: ids are admitted in the order of the batches.
        ahead = Prefetch.Config(workers=1 if self.sharding.overlap else 0, ahead=2)
        pending: Step | None = None
        for admitted in Prefetch(config=ahead, work=self.admission)(parts):
            batch = moved(admitted, self.group.device)
            coming = Step(batch=batch, sent=self.tables.send(batch.ids))
            if not self.sharding.overlap:
                yield coming
                continue
            if pending is not None:
                pending.following = coming
                yield pending
            pending = coming
        if pending is not None:
            yield pending

    def step(self, batch: Any) -> Mapping[str, float]:
        """One update, from all workers' shards."""
        step = cast(Step, batch)
        self.tables.evict(step.batch.evicted)
        self.model.observe(step.batch.dense_CF)
        shards = step.batch.shards
        found_MD, place_M = self.tables.look_up(step.sent), step.batch.place_M
        sizes = [shard.rows for shard in shards]
        rows = [part.requires_grad_() for part in found_MD.detach()[place_M].split(sizes)]

        def between() -> None:
            if step.following is not None:
                step.following.sent.advance()

        self.optimiser.dense.zero_grad(set_to_none=True)
        self.loss.first_draw = self.optimiser.updates * self.sharding.logical
        loss_L = self.reduction.backward(rows, shards, between)
        losses = self.group.begin_gather(loss_L.unsqueeze(1))
        gradient_MD = torch.empty_like(found_MD)
        gradient_MD[place_M] = torch.cat([cast(Tensor, part.grad) for part in rows])
        self.tables.learn(step.sent, found_MD, gradient_MD)
        self.optimiser.update()
        return {"train_loss": in_order(losses())[0].item()}

    def finish(self, window: Window) -> Mapping[str, float]:
        """Release the snapshot whose watermark is the window's end; the leader compares it with the one before."""
        snapshot = self._release(watermark=window.end)
        compared = None
        if self.publishing is not None:
            compared = self.publishing.compare(self.publishing.registry.get(snapshot))
        return {**self.model.vocabulary.statistics(), **self.group.from_leader(compared)}

    def flops(self, window: Window) -> float:
        """Floating-point operations for one candidate of the window's first batch, history included; the leader's."""
        batch = self.admission.reader.batch(self.workspace.requests(window.index).slice(0, self.config.batch_size))
        model = cast(Publisher, self.publishing).model
        return flops_per_candidate(lambda: model(batch), candidates=len(batch.item_C))

    def tensors(self) -> dict[str, Tensor | Pieces]:
        """Everything that the next window depends on and that is a tensor: the memory itself, to be saved."""
        saved: dict[str, Tensor | Pieces] = {f"buffer/{name}": each for name, each in self._buffers().items()}
        return saved | self._dense() | {f"table/{name}": each for name, each in self.tables.saved().items()}

    def facts(self) -> dict[str, Any]:
        """The rest of it, as JSON values, the same on every worker. Dropout follows from ``updates``."""
        return {"updates": self.optimiser.updates, "released": self.released, "columns": self.tables.columns}

    def restore(self, facts: Mapping[str, Any], read: Read) -> None:
        """Continue from what :meth:`facts` said and :meth:`tensors` held, on any number of workers."""
        buffers = {name: each.clone() for name, each in self._buffers().items()}
        tables, squares = self.tables.to_read(facts["columns"])
        read(
            {f"buffer/{name}": each for name, each in buffers.items()}
            | self._dense()
            | {f"table/{name}": each for name, each in tables.items()}
        )
        squares.use()
        self.model.load_state_dict(buffers, strict=False)
        self.optimiser.updates = facts["updates"]
        for weight in self.optimiser.weights:
            self.optimiser.dense.state[weight]["step"].fill_(facts["updates"])
        self.released = facts["released"]
        if self.publishing is not None:
            self.publishing.released = self.released

    def state_dict(self) -> dict[str, Any]:
        """What one process would go on from, on the leader; empty elsewhere. All workers call it.

        Random streams go on after the draws of all shards.
        """
        optimiser = self.optimiser
        model = {name: _whole(tensor) for name, tensor in self.model.state_dict().items()}
        average = {str(index): _whole(tensor) for index, tensor in enumerate(optimiser.average)}
        dense = optimiser.dense.state_dict()
        moments = {index: {key: _whole(each) for key, each in of.items()} for index, of in dense["state"].items()}
        tables, squares = self.tables.whole(), self.tables.whole_squares()
        if not self.group.leads:
            return {}
        drawn = torch.tensor(optimiser.updates * self.sharding.logical)
        rate = torch.tensor(self.config.optimiser.table_learning_rate).item()  # as tables keep it, in float32
        return {
            "model": model | {"table.weight": torch.cat([*tables.values()])},
            "optimiser": {
                "dense": {"state": moments, "param_groups": dense["param_groups"]},
                "sparse": {"learning_rate": [rate], "squares": [torch.cat([*squares.values()])]},
                "average": average,
                "updates": optimiser.updates,
            },
            "dropout": dict.fromkeys(get_states(self.model), drawn),
            "released": self.released,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refused: workers read pieces, see :meth:`restore`."""
        raise TypeError("several workers go on from a checkpoint in pieces: see ShardedTrainer")

    def _dense(self) -> dict[str, Tensor | Pieces]:
        optimiser, saved = self.optimiser, dict[str, Tensor | Pieces]()
        names = [name for name, _ in self.model.named_parameters()]
        for name, weight, average in zip(names, optimiser.weights, optimiser.average, strict=True):
            state = optimiser.dense.state[weight]
            saved |= {f"weight/{name}": weight.detach(), f"average/{name}": average}
            saved |= {f"{key}/{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
        return saved

    def _buffers(self) -> dict[str, Tensor]:
        dense = {name for name, _ in self.model.named_parameters()}
        return {name: each for name, each in self.model.state_dict().items() if name not in dense}

    def _release(self, *, watermark: int) -> str:
        with self.optimiser.averaged():
            dense = {name: _whole(tensor) for name, tensor in self.model.state_dict().items()}
            tables = self.tables.whole()
            released = None
            if self.publishing is not None:
                tensors = dense | {"table.weight": torch.cat([*tables.values()])}
                weights = cast(FoundationModel, Weights(config=self.config.model, tensors=tensors))
                released = self.publishing.release(weights, watermark=watermark, metrics={}).name
        name: str = self.group.from_leader(released)
        self.released = name
        return name


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
