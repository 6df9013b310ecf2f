"""Gradients of dense weights from several workers: added up over all logical shards of a global batch.

Shape legend: L logical shards of this worker, S of the global batch, P dense weights, W workers.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from foundation.sharded.batch import Shard
from foundation.sharded.config import Sharding
from foundation.sharded.group import Group, in_order
from foundation.sharded.model import ShardLoss

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Between = Callable[[], None]
"""What is called once a worker's first shard has been computed forward: room to send something meanwhile."""


class Reduction(Protocol):
    """How gradients come together. ``moved``: bytes that a worker sends for it in a step."""

    moved: int

    def backward(self, rows: list[Tensor], shards: list[Shard], between: Between) -> Tensor:
        """Leave gradients of the global loss on dense weights, and those of this worker's shards on ``rows``.

        Args:
            rows: of each shard float32 leaves ``[M, D]``.

        Returns:
            the parts of the loss, float32 ``[L]``.
        """
        ...


def reduction_of(loss: ShardLoss, sharding: Sharding, group: Group) -> Reduction:
    """As ``sharding`` asks for. Built before the optimiser: FSDP2 replaces the weights that it is to hold."""
    if sharding.deterministic:
        return InOrder(loss, group)
    if sharding.dense == "fsdp2":
        return FullySharded(loss, sharding, group)
    return Replicated(loss, sharding, group)


class InOrder:
    """Every shard's gradient apart, gathered, and added in the shards' order: the same bits on any workers."""

    def __init__(self, loss: ShardLoss, group: Group) -> None:
        self.loss = loss
        self.group = group
        self.weights = list(loss.parameters())
        self.moved = 0

    def backward(self, rows: list[Tensor], shards: list[Shard], between: Between) -> Tensor:
        gradients, losses = [], []
        for index, (row_MD, shard) in enumerate(zip(rows, shards, strict=True)):
            loss = self.loss(row_MD, shard)
            if index == 0:
                between()
            loss.backward()
            losses.append(loss.detach())
            gradients.append(torch.cat([_gradient(weight).flatten() for weight in self.weights]))
            for weight in self.weights:
                weight.grad = None
        gradient_LP = torch.stack(gradients)
        self.moved = gradient_LP.nbytes * (self.group.size - 1)
        total_P = in_order(self.group.gather(gradient_LP))
        for weight, part in zip(self.weights, total_P.split([each.numel() for each in self.weights]), strict=True):
            weight.grad = part.view_as(weight)
        return torch.stack(losses)


class Replicated:
    """DDP: added by all-reduce, bucket by bucket while the rest of backward runs."""

    def __init__(self, loss: ShardLoss, sharding: Sharding, group: Group) -> None:
        self.module = DistributedDataParallel(loss, process_group=group.process_group, forward_sync_buffers=False)
        dtype = DTYPES[sharding.gradients]

        def add(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            # Gradients are of the global loss already: they are added, where DDP by itself takes the mean.
            given_P = bucket.buffer()
            sent_P = given_P.to(dtype)
            future = dist.all_reduce(sent_P, group=group.process_group, async_op=True).get_future()
            return future.then(lambda done: given_P.copy_(done.value()[0]))

        self.module.register_comm_hook(None, add)
        count = sum(weight.numel() for weight in loss.parameters())
        self.moved = 2 * count * dtype.itemsize * (group.size - 1) // group.size

    def backward(self, rows: list[Tensor], shards: list[Shard], between: Between) -> Tensor:
        losses = []
        for index, (row_MD, shard) in enumerate(zip(rows, shards, strict=True)):
            with nullcontext() if index == len(shards) - 1 else self.module.no_sync():
                loss = self.module(row_MD, shard)
                if index == 0:
                    between()
                loss.backward()
                losses.append(loss.detach())
        return torch.stack(losses)


class FullySharded:
    """FSDP2: each worker keeps a part of every dense weight, of its gradient and of its optimiser's state."""

    def __init__(self, loss: ShardLoss, sharding: Sharding, group: Group) -> None:
        device = next(loss.parameters()).device.type
        mesh = DeviceMesh.from_group(group.process_group, device)
        precision = MixedPrecisionPolicy(reduce_dtype=DTYPES[sharding.gradients])
        for layer in loss.model.stack.layers:
            fully_shard(layer, mesh=mesh, mp_policy=precision)
        fully_shard(loss, mesh=mesh, mp_policy=precision)  # in place
        loss.model.vocabulary.cpu()  # FSDP2 takes every buffer to the workers' devices; it computes on no GPU
        self.loss = loss
        for module in loss.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        count = sum(weight.numel() for weight in loss.parameters())
        # Weights are gathered for forward and again for backward, gradients scattered once.
        size = 4 + 4 + DTYPES[sharding.gradients].itemsize
        self.moved = count * size * (group.size - 1) // group.size

    def backward(self, rows: list[Tensor], shards: list[Shard], between: Between) -> Tensor:
        losses = []
        for index, (row_MD, shard) in enumerate(zip(rows, shards, strict=True)):
            cast(FSDPModule, self.loss).set_requires_gradient_sync(index == len(shards) - 1)
            loss = self.loss(row_MD, shard)
            if index == 0:
                between()
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses)


def _gradient(weight: nn.Parameter) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad
