"""Which worker holds which piece of which table: torchrec's planner, under a budget of memory a worker.

Shape legend: D embedding width, W workers.
"""

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from foundation.sharded.config import LOSS_SCALE, Kind, Sharding
from foundation.sharded.group import Group
from streaming.errors import ConfigError

NO_LIMIT = 1 << 50
DATA_PARALLEL: Kind = "data_parallel"


@dataclass(frozen=True)
class Piece:
    """A rectangle of a table. Attributes: ``table``; ``kind``, how the table is sharded; ``worker`` that holds it;
    ``row``, ``rows``, ``column``, ``columns``: where it begins and how far it goes. Of a data-parallel table every
    worker has a piece, the whole.
    """

    table: str
    kind: str
    worker: int
    row: int
    rows: int
    column: int
    columns: int

    @property
    def span(self) -> slice:
        """Its rows."""
        return slice(self.row, self.row + self.rows)

    @property
    def bytes(self) -> int:
        """Float32 weights and Adagrad's sums."""
        return 4 * self.rows * (self.columns + 1)

    @property
    def speaks(self) -> bool:
        """Whether what it holds is saved and put together from it: of equal pieces, the first worker's."""
        return self.kind != DATA_PARALLEL or self.worker == 0


def collection_of(tables: dict[str, int], *, width: int, learning_rate: float) -> EmbeddingCollection:
    """An embedding without memory, to be sharded; rows of every table by name. Row-wise Adagrad runs in backward."""
    collection = EmbeddingCollection(
        tables=[
            EmbeddingConfig(name=name, embedding_dim=width, num_embeddings=rows, feature_names=[name])
            for name, rows in tables.items()
        ],
        device=torch.device("meta"),
    )
    _apply_optimizer_in_backward(RowWiseAdagrad, collection.parameters(), {"lr": learning_rate, "eps": 1e-8})
    return collection


def sharder_of(sharding: Sharding, device: torch.device) -> EmbeddingCollectionSharder:
    """What moves vectors, in the precision that is asked for."""
    if sharding.vectors == "float32":
        return EmbeddingCollectionSharder()
    config = QCommsConfig(
        forward_precision=CommType.FP16, backward_precision=CommType.FP16, backward_loss_scale=LOSS_SCALE
    )
    return EmbeddingCollectionSharder(qcomm_codecs_registry=get_qcomm_codecs_registry(config, device=device))


def propose(
    collection: EmbeddingCollection,
    sharding: Sharding,
    *,
    batch_size: int,
    device: torch.device,
    asked: Mapping[str, int] | None = None,
) -> ShardingPlan:
    """The planner's choice for ``sharding.workers``; needs no worker.

    It is asked twice. First as if a request looked up one row of every table: that settles how each is sharded, and
    that they fit. Then with the rows that a batch does look up of each (a table of items is asked for hundreds of times
    as many as one of weekdays): tables of the same kinds, placed so that workers have as much to do. Where the budget
    holds the tables but not all that travels then, the first answer stands.

    Args:
        batch_size: requests of a global batch, by which traffic is estimated.
        asked: distinct rows of every table that a global batch looks up, see
            :func:`foundation.sharded.batch.rows_asked`; without it, what is placed is as many tables each.

    Raises:
        ConfigError: the tables do not fit into ``memory_mib`` of every worker, sharded as allowed; or ``kinds_of``
            names one that there is not.
    """
    tables = collection.embedding_configs()
    _require_tables(sharding, [each.name for each in tables])
    kinds = {each.name: list(sharding.kinds_of.get(each.name, sharding.kinds)) for each in tables}
    once = dict.fromkeys(kinds, batch_size)
    try:
        found = _plan(collection, sharding, kinds, once, batch_size=batch_size, device=device)
    except PlannerError as error:
        needed = sum(4 * each.num_embeddings * (each.embedding_dim + 1) for each in tables)
        raise ConfigError(
            f"sharding.memory_mib: {sharding.memory_mib} a worker does not hold the tables: {needed / 2**20:.1f} MiB "
            f"with their optimiser's sums, and what travels, on {sharding.workers} workers, sharded {sharding.kinds}"
            f"{f' and {sharding.kinds_of}' if sharding.kinds_of else ''}. Give more memory, more workers, or row_wise "
            f"among kinds. The planner: {str(error).strip()[:300]}"
        ) from None
    if asked is None:
        return found
    settled = {table: [cast(Kind, parameter.sharding_type)] for table, parameter in _by_table(found).items()}
    try:
        return _plan(collection, sharding, settled, asked, batch_size=batch_size, device=device)
    except PlannerError:
        return found


def _plan(
    collection: EmbeddingCollection,
    sharding: Sharding,
    kinds: Mapping[str, list[Kind]],
    asked: Mapping[str, int],
    *,
    batch_size: int,
    device: torch.device,
) -> ShardingPlan:
    workers = sharding.workers
    budget = NO_LIMIT if sharding.memory_mib is None else int(sharding.memory_mib * 2**20)
    constraints = {
        each.name: ParameterConstraints(
            sharding_types=list(kinds[each.name]),
            compute_kernels=["fused", "dense"],  # dense is what the planner calls the kernel of data-parallel tables
            min_partition=max(4, each.embedding_dim // workers),
            pooling_factors=[max(asked[each.name], 1) / batch_size],
        )
        for each in collection.embedding_configs()
    }
    with _quiet():
        planner = EmbeddingShardingPlanner(
            topology=Topology(
                world_size=workers,
                compute_device=device.type,
                local_world_size=workers,
                hbm_cap=budget if device.type == "cuda" else 0,
                ddr_cap=budget,
            ),
            batch_size=max(1, batch_size // workers),
            storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
            constraints=constraints,
            debug=False,
        )
        return planner.plan(collection, [sharder_of(sharding, device)])


def agreed(
    collection: EmbeddingCollection,
    sharding: Sharding,
    group: Group,
    *,
    batch_size: int,
    device: torch.device,
    asked: Mapping[str, int] | None,
) -> ShardingPlan:
    """What the leader proposes, on every worker.

    Raises:
        ConfigError: see :func:`propose`; on every worker.
    """
    said: ShardingPlan | ConfigError | None = None
    if group.leads:
        try:
            said = propose(collection, sharding, batch_size=batch_size, device=device, asked=asked)
        except ConfigError as error:
            said = error
    said = group.from_leader(said)
    if isinstance(said, ConfigError):
        raise said
    return said


def pieces(plan: ShardingPlan, collection: EmbeddingCollection) -> list[Piece]:
    """All pieces of all tables, in the plan's order."""
    shape = {each.name: (each.num_embeddings, each.embedding_dim) for each in collection.embedding_configs()}
    found = []
    for table, parameter in _by_table(plan).items():
        kind = parameter.sharding_type
        if kind == DATA_PARALLEL:
            places = [(worker, (0, 0), shape[table]) for worker in parameter.ranks]
        else:
            shards = parameter.sharding_spec.shards
            places = [(shard.placement.rank(), shard.shard_offsets, shard.shard_sizes) for shard in shards]
        found += [
            Piece(table=table, kind=kind, worker=worker, row=row, rows=rows, column=column, columns=columns)
            for worker, (row, column), (rows, columns) in places
        ]
    return found


def without(plan: ShardingPlan, tables: Collection[str]) -> EmbeddingModuleShardingPlan:
    """The plan for all other tables."""
    left = EmbeddingModuleShardingPlan()
    left.update({table: parameter for table, parameter in _by_table(plan).items() if table not in tables})
    return left


def _by_table(plan: ShardingPlan) -> EmbeddingModuleShardingPlan:
    module = plan.get_plan_for_module("")
    assert isinstance(module, EmbeddingModuleShardingPlan)
    return module


def to_rows(all_pieces: list[Piece]) -> list[dict[str, object]]:
    """The plan as it is printed: a row a table."""
    by_table: dict[str, list[Piece]] = {}
    for piece in all_pieces:
        by_table.setdefault(piece.table, []).append(piece)
    return [
        {
            "table": table,
            "kind": of_table[0].kind,
            "pieces": ", ".join(f"{each.rows} x {each.columns} on {each.worker}" for each in of_table),
            "MiB": round(sum(each.bytes for each in of_table) / 2**20, 3),
        }
        for table, of_table in by_table.items()
    ]


def to_json(all_pieces: list[Piece], *, workers: int) -> str:
    """The plan as it is kept: bytes on every worker, and every piece."""
    of_worker = [sum(each.bytes for each in all_pieces if each.worker == worker) for worker in range(workers)]
    return json.dumps({"bytes_by_worker": of_worker, "pieces": [asdict(each) for each in all_pieces]}, indent=1) + "\n"


def _require_tables(sharding: Sharding, tables: list[str]) -> None:
    unknown = sorted(sharding.kinds_of.keys() - set(tables))
    if unknown:
        raise ConfigError(
            f"sharding.kinds_of: there is no table {unknown[0]!r}. Allowed are {', '.join(tables)}. "
            f"Example: {{{tables[0]}: [data_parallel]}}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the planner's remarks: on its topology, and, to the root logger, that whole tables have no pieces."""
    logging.getLogger("torchrec.distributed.planner").setLevel(logging.ERROR)
    root = logging.getLogger()

    def is_told(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Sharding spec not found")

    root.addFilter(is_told)
    try:
        yield
    finally:
        root.removeFilter(is_told)
