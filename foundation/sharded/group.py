"""What workers say to one another beside their tensors: Python values, few and small."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

ValueT = TypeVar("ValueT")

Gathered = Callable[[], Tensor]
"""Waits for what is on its way, and returns it."""

CPU = torch.device("cpu")
WAIT_SECONDS = 12 * 3600
"""How long a worker waits for the others: as long as the leader may take to publish a window."""


class Group:
    """The workers that train together.

    Attributes: ``process_group``; ``rank`` of this worker among ``size``; ``leads``: whether it publishes and writes
    what there is one of; ``device``, on which it computes.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None, *, device: torch.device = CPU) -> None:
        self.process_group: dist.ProcessGroup = process_group or dist.group.WORLD  # type: ignore[assignment]
        self.rank = dist.get_rank(self.process_group)
        self.size = dist.get_world_size(self.process_group)
        self.leads = self.rank == 0
        self.device = device

    def from_leader(self, value: ValueT | None) -> ValueT:
        """The leader's ``value``, on every worker."""
        box: list[ValueT | None] = [value]
        dist.broadcast_object_list(box, group=self.process_group, group_src=0)
        return box[0]  # type: ignore[return-value]

    def gather(self, local_LX: Tensor) -> Tensor:
        """Rows of all workers, worker after worker: ``[L, X]`` of each to ``[W L, X]``."""
        return self.begin_gather(local_LX)()

    def begin_gather(self, local_LX: Tensor) -> Gathered:
        """:meth:`gather` in two: what it returns waits for the others' rows."""
        all_NX = local_LX.new_empty((self.size * len(local_LX), *local_LX.shape[1:]))
        work = dist.all_gather_single(all_NX, local_LX.contiguous(), group=self.process_group, async_op=True)

        def gathered() -> Tensor:
            work.wait()
            return all_NX

        return gathered

    def barrier(self) -> None:
        """Wait for all."""
        dist.barrier(group=self.process_group)


def in_order(row_NX: Tensor) -> Tensor:
    """The sum of the rows, added one after the other: the same bits wherever the rows came from."""
    total_X = row_NX[0].clone()
    for row_X in row_NX[1:]:
        total_X += row_X
    return total_X
