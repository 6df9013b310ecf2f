"""Data-parallel tables: every worker has the whole of them, looks up at home, and makes every worker's updates.

Rows that were looked up travel with their gradients, not the table's dense gradient; so it need not be small. Each
row's gradients are added in the order of the workers, as the owner of a piece does, and by the same kernel: the bits
are those of other kinds, and the same on every worker. torchrec's own data-parallel tables have no kernel on a CPU.

Shape legend: M rows that this worker looks up, P the most that a worker does, A rows of all workers together, W
workers, R rows of a table, D embedding width.
"""

import torch
import torch.nn.functional as F
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.hstu.embedding import placement
from foundation.sharded.config import LOSS_SCALE, Sharding
from foundation.sharded.group import Gathered, Group


class ReplicatedTables:
    """Tables of zeros, the same on every worker, with row-wise Adagrad.

    Args:
        tables: rows by name.
        width: D.
    """

    def __init__(
        self, tables: dict[str, int], *, width: int, learning_rate: float, sharding: Sharding, group: Group
    ) -> None:
        self.tables, self.group = tables, group
        self._half = sharding.vectors == "float16"
        location, compute = placement(group.device)
        # As torchrec has its tables: fbgemm's kernel for sums of rows differs from this one in last bits.
        self._table = SplitTableBatchedEmbeddingBagsCodegen(
            [(sum(tables.values()), width, location, compute)],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=learning_rate,
            eps=1e-8,
            pooling_mode=PoolingMode.NONE,
            stochastic_rounding=False,
            bounds_check_mode=BoundsCheckMode.NONE if compute == ComputeDevice.CPU else BoundsCheckMode.FATAL,
            device=group.device,
        )
        (self._weight_RD,) = self._table.split_embedding_weights()
        ((self._square_R, *_),) = self._table.split_optimizer_states()
        self._weight_RD.zero_()
        self._square_R.zero_()

    def memory(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Weights ``[R, D]`` and sums of squares ``[R]`` of every table: the memory itself."""
        sizes = list(self.tables.values())
        parts = (self._weight_RD.split(sizes), self._square_R.split(sizes))
        return dict(zip(self.tables, zip(*parts, strict=True), strict=True))

    def send(self, ids: KeyedJaggedTensor) -> "SentRows":
        """Begin to send rows to all workers. All send in the same order."""
        rows, first = {}, 0
        for name, count in self.tables.items():
            rows[name] = ids[name].values() + first
            first += count
        return SentRows(rows, self.group)

    def look_up(self, sent: "SentRows") -> dict[str, Tensor]:
        """Float32 rows by table, as they were sent. Give the gradient of ``sent.found_MD`` to :meth:`learn`."""
        sent.found_MD = self._weight_RD[sent.row_M].requires_grad_()
        return dict(zip(sent.sizes, sent.found_MD.split(list(sent.sizes.values())), strict=True))

    def learn(self, sent: "SentRows") -> None:
        """Update by all workers' gradients of what they looked up. All call it."""
        counts, row_A = sent.rows()
        if not max(counts):
            return
        assert sent.found_MD is not None and sent.found_MD.grad is not None
        gradient_MD = sent.found_MD.grad
        if self._half:
            gradient_MD = (gradient_MD * LOSS_SCALE).half()
        padded_PD = F.pad(gradient_MD, (0, 0, 0, max(counts) - len(gradient_MD)))
        gradient_AD = _unpadded(self.group.gather(padded_PD), counts)
        if self._half:
            gradient_AD = gradient_AD.float() / LOSS_SCALE
        self._table(row_A, torch.tensor([0, len(row_A)], device=row_A.device)).backward(gradient_AD)


class SentRows:
    """Rows on their way to all workers, in two rounds: first how many, then which.

    Attributes: ``row_M``, this worker's, table after table; ``sizes``, how many of each table; ``found_MD``, what was
    looked up.
    """

    def __init__(self, rows: dict[str, Tensor], group: Group) -> None:
        self.sizes = {name: len(each) for name, each in rows.items()}
        self.row_M = torch.cat([*rows.values()])
        self.found_MD: Tensor | None = None
        self._group = group
        self._counts = group.begin_gather(torch.tensor([len(self.row_M)]))
        self._sent: tuple[list[int], Gathered] | None = None

    def advance(self) -> None:
        """Begin the second round, if it has not begun."""
        if self._sent is None:
            counts = self._counts().tolist()
            self._sent = counts, self._group.begin_gather(F.pad(self.row_M, (0, max(counts) - len(self.row_M))))

    def rows(self) -> tuple[list[int], Tensor]:
        """How many each worker sent, and int64 ``[A]``, worker after worker."""
        self.advance()
        assert self._sent is not None
        counts, gathered = self._sent
        return counts, _unpadded(gathered(), counts)


def _unpadded(row_NX: Tensor, counts: list[int]) -> Tensor:
    """``[W P, …]`` to ``[A, …]``."""
    if not max(counts):
        return row_NX
    return torch.cat([part[:count] for part, count in zip(row_NX.split(max(counts)), counts, strict=True)])
