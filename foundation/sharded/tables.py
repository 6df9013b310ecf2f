"""Embedding tables in pieces on several workers: looked up, updated, evicted from, saved and put together.

Shape legend: M rows looked up, D embedding width, R rows of a table, G column-wise pieces of it.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import comm_ops
from torchrec.distributed.types import Awaitable, ShardingEnv
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.sharded import plan as planning
from foundation.sharded.config import Sharding
from foundation.sharded.group import Group
from foundation.sharded.plan import Piece
from foundation.sharded.replicated import ReplicatedTables, SentRows
from hypercast.training.distributed_checkpoint import Pieces


class ShardedTables:
    """One table a feature, each where the plan says. Weights start at zero.

    :meth:`learn` sends gradients to the rows' owners, adds up each row's over all workers, and updates by row-wise
    Adagrad at once, as :class:`foundation.hstu.embedding.FeatureEmbedding` does: so look up once a step.

    Args:
        tables: rows by name.
        width: D.
        batch_size: requests of a global batch.
        asked: rows of every table that a global batch looks up, by which workers get as many to look up and to update;
            None where that is not known.

    Raises:
        ConfigError: they do not fit, see :func:`foundation.sharded.plan.propose`.
    """

    def __init__(
        self,
        tables: dict[str, int],
        *,
        width: int,
        learning_rate: float,
        sharding: Sharding,
        group: Group,
        batch_size: int,
        asked: Mapping[str, int] | None = None,
    ) -> None:
        comm_ops.set_gradient_division(False)  # gradients are of the global loss: they are added, never averaged
        self.tables, self.width, self.group, self.device = tables, width, group, group.device
        collection = planning.collection_of(tables, width=width, learning_rate=learning_rate)
        found = planning.agreed(collection, sharding, group, batch_size=batch_size, device=self.device, asked=asked)
        self.pieces = planning.pieces(found, collection)
        whole = {each.table for each in self.pieces if each.kind == planning.DATA_PARALLEL}
        self._cut = {name: rows for name, rows in tables.items() if name not in whole}
        self._module: nn.Module | None = None
        if self._cut:
            self._module = planning.sharder_of(sharding, self.device).shard(
                planning.collection_of(self._cut, width=width, learning_rate=learning_rate),
                planning.without(found, whole),
                ShardingEnv.from_process_group(group.process_group),
                self.device,
            )
        self._replicated: ReplicatedTables | None = None
        if whole:
            self._replicated = ReplicatedTables(
                {name: rows for name, rows in tables.items() if name in whole},
                width=width,
                learning_rate=learning_rate,
                sharding=sharding,
                group=group,
            )
        self._local = self._local_pieces()
        for weight_RD, square_R in self._local.values():
            weight_RD.zero_()
            square_R.zero_()

    def send(self, ids: KeyedJaggedTensor) -> "Sent":
        """Begin to send ids to the rows' owners. All workers send in the same order."""
        if self._replicated is None:
            return Sent(self._module, ids, None)
        cut = ids.permute([ids.keys().index(name) for name in self._cut]) if self._cut else ids
        return Sent(self._module, cut, self._replicated.send(ids))

    def evict(self, rows: dict[str, np.ndarray]) -> None:
        """Let rows that changed hands start again, wherever they lie."""
        for piece, (weight_RD, square_R) in self._local.items():
            freed = rows[piece.table]
            if not len(freed):
                continue
            mine = freed[(freed >= piece.row) & (freed < piece.row + piece.rows)] - piece.row
            if len(mine):
                index = torch.from_numpy(mine).to(self.device)
                weight_RD[index] = 0.0
                square_R[index] = 0.0

    def look_up(self, sent: "Sent") -> Tensor:
        """Float32 ``[M, D]``, table after table, and there as they were sent."""
        found = sent.vectors()
        if self._replicated is not None and sent.rows is not None:
            found |= self._replicated.look_up(sent.rows)
        return torch.cat([found[name] for name in self.tables])

    def learn(self, sent: "Sent", found_MD: Tensor, gradient_MD: Tensor) -> None:
        """Send gradients of what :meth:`look_up` found to who holds the rows, and update them there."""
        found_MD.backward(gradient_MD)
        if self._replicated is not None and sent.rows is not None:
            self._replicated.learn(sent.rows)

    @property
    def columns(self) -> dict[str, list[int]]:
        """Where each table's column-wise pieces begin."""
        return {name: sorted({each.column for each in self.pieces if each.table == name}) for name in self.tables}

    def saved(self) -> dict[str, Pieces]:
        """``NAME/weight`` ``[R, D]`` and ``NAME/squares`` ``[R, G]`` of every table, this worker's pieces of them."""
        columns, saved = self.columns, {}
        for name, rows in self.tables.items():
            mine = {each: tensors for each, tensors in self._local.items() if each.table == name and each.speaks}
            saved[f"{name}/weight"] = Pieces(
                shape=(rows, self.width),
                pieces={(each.row, each.column): weight_RD for each, (weight_RD, _) in mine.items()},
            )
            saved[f"{name}/squares"] = Pieces(
                shape=(rows, len(columns[name])),
                pieces={
                    (each.row, columns[name].index(each.column)): square_R.unsqueeze(1)
                    for each, (_, square_R) in mine.items()
                },
            )
        return saved

    def to_read(self, columns: dict[str, list[int]]) -> tuple[dict[str, Pieces], "Squares"]:
        """What to read a checkpoint into whose pieces began at ``columns``; then give the sums to ``Squares.use``."""
        squares = Squares(columns, width=self.width)
        wanted = {}
        for name, rows in self.tables.items():
            mine = {each: tensors for each, tensors in self._local.items() if each.table == name}
            wanted[f"{name}/weight"] = Pieces(
                shape=(rows, self.width),
                pieces={(each.row, each.column): weight_RD for each, (weight_RD, _) in mine.items()},
            )
            groups = len(columns[name])
            read = {each.row: torch.zeros(each.rows, groups) for each in mine}
            wanted[f"{name}/squares"] = Pieces(
                shape=(rows, groups), pieces={(row, 0): square_RG for row, square_RG in read.items()}
            )
            squares.into += [(each, read[each.row], square_R) for each, (_, square_R) in mine.items()]
        return wanted, squares

    def whole(self) -> dict[str, Tensor]:
        """Weights ``[R, D]`` of every table on the leader, nothing elsewhere. All workers call it."""
        whole = {name: torch.zeros(rows, self.width) for name, rows in self.tables.items()} if self.group.leads else {}
        for piece, part_RD in self._collected(0):
            whole[piece.table][piece.span, piece.column : piece.column + piece.columns] = part_RD
        return whole

    def whole_squares(self) -> dict[str, Tensor]:
        """Adagrad's sums ``[R]`` likewise; of column-wise pieces the mean over columns."""
        whole = {name: torch.zeros(rows) for name, rows in self.tables.items()} if self.group.leads else {}
        for piece, part_R in self._collected(1):
            whole[piece.table][piece.span] += part_R * (piece.columns / self.width)
        return whole

    def _collected(self, which: int) -> Iterator[tuple[Piece, Tensor]]:
        """On the leader, every piece with its weights (0) or sums (1); elsewhere nothing, but own pieces are sent."""
        group = self.group.process_group
        for piece in self.pieces:
            if not (piece.rows and piece.speaks):
                continue
            if piece.worker == self.group.rank:
                part = self._local[piece][which].cpu().contiguous()
                if self.group.leads:
                    yield piece, part
                else:
                    dist.send(part, group=group, group_dst=0)
            elif self.group.leads:
                part = torch.empty((piece.rows, piece.columns) if which == 0 else (piece.rows,))
                dist.recv(part, group=group, group_src=piece.worker)
                yield piece, part

    def _local_pieces(self) -> dict[Piece, tuple[Tensor, Tensor]]:
        """Weights ``[rows, columns]`` and sums of squares ``[rows]`` of this worker's pieces: the memory itself."""
        local = {}
        held = [each for each in self.pieces if each.worker == self.group.rank and each.rows]
        if self._replicated is not None:
            whole = self._replicated.memory()
            local = {each: whole[each.table] for each in held if each.table in whole}
        if self._module is None:
            return local
        weights = self._module.state_dict()
        states = self._module.fused_optimizer.state_dict()["state"]  # type: ignore[operator, union-attr]
        for table in {each.table for each in held if each.table in self._cut}:
            weight, square = weights[f"embeddings.{table}.weight"], states[f"embeddings.{table}.weight"]
            (square,) = square.values()
            assert isinstance(weight, ShardedTensor) and isinstance(square, ShardedTensor)
            mine = [each for each in held if each.table == table]
            by_place = {tuple(shard.metadata.shard_offsets): shard.tensor for shard in weight.local_shards()}
            # A column-wise table's sums come one piece after the other, as if they were further rows.
            sums = sorted(square.local_shards(), key=lambda shard: shard.metadata.shard_offsets[0])
            sums = [shard for shard in sums if len(shard.tensor)]
            for piece, shard in zip(sorted(mine, key=lambda each: (each.column, each.row)), sums, strict=True):
                local[piece] = (by_place[piece.row, piece.column], shard.tensor)
        return local


class Sent:
    """Ids on their way, in two rounds: first how many, then the ids.

    Args:
        module: of tables in pieces; None where there is none.
        rows: those of data-parallel tables.
    """

    def __init__(self, module: nn.Module | None, ids: KeyedJaggedTensor, rows: SentRows | None) -> None:
        self.rows = rows
        self._module = module
        if module is None:
            return
        self._context = module.create_context()  # type: ignore[operator]
        self._counts: Awaitable = module.input_dist(self._context, ids)  # type: ignore[operator]
        self._ids: Awaitable | None = None

    def advance(self) -> None:
        """Begin the second round, if it has not begun."""
        if self._module is not None and self._ids is None:
            self._ids = self._counts.wait()
        if self.rows is not None:
            self.rows.advance()

    def vectors(self) -> dict[str, Tensor]:
        """Of tables in pieces, by table, once they are there."""
        self.advance()
        if self._module is None:
            return {}
        assert self._ids is not None
        found = self._module.compute_and_output_dist(self._context, self._ids.wait()).wait()  # type: ignore[operator]
        return {name: each.values() for name, each in found.items()}


class Squares:
    """Adagrad's sums of a checkpoint whose tables were cut into other columns.

    A row-wise sum is of the mean of squared gradients over a piece's columns; that of other columns is the mean over
    the pieces, weighted by the columns they share.
    """

    def __init__(self, columns: dict[str, list[int]], *, width: int) -> None:
        self.columns = columns
        self.width = width
        self.into: list[tuple[Piece, Tensor, Tensor]] = []

    def use(self) -> None:
        """Fill the sums in place from what was read."""
        for piece, square_RG, square_R in self.into:
            begins = self.columns[piece.table]
            ends = [*begins[1:], self.width]
            last = piece.column + piece.columns
            shared = [
                max(0, min(end, last) - max(begin, piece.column)) for begin, end in zip(begins, ends, strict=True)
            ]
            covering = [group for group, count in enumerate(shared) if count == piece.columns]
            if covering:
                square_R.copy_(square_RG[:, covering[0]])
            else:
                share_G = torch.tensor(shared, dtype=torch.float32) / piece.columns
                square_R.copy_(square_RG @ share_G)
