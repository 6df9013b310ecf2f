"""A worker's part of a global batch: its logical shards, and which rows of which table each asks for.

Every worker goes through the ids of the whole global batch, so that all admit the same ids in the same order and their
vocabularies stay equal without a word between them: eight bytes a token, read from the mapped engagement log. Tokens
are built, and vectors looked up, for a worker's own shards only.

Shape legend: B requests, U distinct items, N things to embed, F features of one kind, T tables, G bags, L logical
shards of this worker, M rows that a shard looks up.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.hstu.vocabulary import BatchVocabulary, Vocabulary
from foundation.model import CONTEXT_TOKENS
from foundation.sharded.split import split_by_tokens
from streaming.batch import BatchReader, RequestBatch, keyed
from streaming.history import EngagementLog, gather
from streaming.prefetch import Prefetch
from streaming.requests import Requests
from streaming.workspace import Workspace

HISTORY = "all"
"""Name of the foundation model's history in a batch."""
BAGS_OF_GPU = 64
"""Into how many bags the rows asked of a table are cut for a GPU.

It looks up the rows of one bag after the other, and all bags at once. CPUs gain nothing by it.
"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is read of one global batch before any id is admitted.

    Attributes:
        requests: all of the global batch.
        item_U: rows of the item catalogue that it names, each once, ascending.
        numbers, batches: the worker's shards.
        members: which requests each of them holds.
        items: of each, the rows of the item catalogue that ``batches[…].items`` stands for.
        weights: the share of the global batch's candidates in each; 0 for one that only fills a gap.
        tokens: of the global batch.
    """

    requests: Requests
    item_U: np.ndarray
    numbers: range
    batches: list[RequestBatch]
    members: list[np.ndarray]
    items: list[np.ndarray]
    weights: list[float]
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One logical shard, ready but for its vectors.

    Attributes:
        number: among the shards of the global batch.
        batch: its requests.
        weight: of its mean loss in that of the global batch.
        row_I: int64, bag after bag, which of its M rows to add up: items', then users', then contexts'.
        offsets: int64, where each bag begins in ``row_I``.
        counts: distinct items, users, contexts.
        rows: M.
    """

    number: int
    batch: RequestBatch
    weight: float
    row_I: Tensor
    offsets: Tensor
    counts: tuple[int, int, int]
    rows: int


@dataclass(frozen=True, kw_only=True)
class WorkerBatch:
    """What one worker does of one global batch.

    Attributes:
        shards: L.
        ids: for every table, rows by shard, each row once in a shard; in bags that mean nothing.
        place_M: int64, for the shards' rows, shard after shard and there table after table, where each lies among
            rows that come table after table.
        evicted: for every table, rows that start again before anything is looked up; int64.
        dense_CF: float32, dense features of the whole global batch.
        tokens: of the whole global batch.
    """

    shards: list[Shard]
    ids: KeyedJaggedTensor
    place_M: Tensor
    evicted: dict[str, np.ndarray]
    dense_CF: Tensor
    tokens: int


class ShardReader:
    """Reads parts of global batches, as :class:`streaming.batch.BatchReader` reads batches.

    Args:
        reader: of whole batches.
        shards: logical, of a global batch.
        mine: which of them are this worker's.
    """

    def __init__(self, *, reader: BatchReader, prefetch: Prefetch.Config, shards: int, mine: range) -> None:
        self.reader = reader
        self.shards = shards
        self.mine = mine
        self._prefetch: Prefetch[tuple[Requests, int, int], Part] = Prefetch(config=prefetch, work=self._work)

    @property
    def log(self) -> tuple[EngagementLog, int]:
        return self.reader.histories[HISTORY]

    def batches(self, requests: Requests, *, size: int, since: int = 0, before: int = 0) -> Iterator[Part]:
        """Parts of global batches of ``size`` requests in time order."""
        slices = (requests.slice(start, start + size) for start in range(0, len(requests), size))
        return self._prefetch((part, since, before) for part in slices)

    def part(self, requests: Requests, *, since: int = 0, before: int = 0) -> Part:
        """Of one global batch of all ``requests``."""
        log, most = self.log
        start_B, end_B = log.spans(requests.user_id, requests.time, max_length=most)
        candidates_B = np.diff(requests.offsets)
        tokens_B = CONTEXT_TOKENS + (end_B - start_B) + candidates_B
        split = split_by_tokens(tokens_B, self.shards)
        # A worker without requests would not take part in the exchange: it repeats the shortest, which counts nothing.
        shortest = np.array([int(tokens_B.argmin())])
        weights = [float(candidates_B[each].sum() / candidates_B.sum()) for each in split]
        members = [split[index] if len(split[index]) else shortest for index in self.mine]
        mine = [requests.take(each) for each in members]
        seen_L, first_B = log.take(start_B, end_B).item, np.concatenate([[0], np.cumsum(end_B - start_B)])
        return Part(
            requests=requests,
            item_U=_distinct(np.concatenate([requests.item, seen_L])),
            numbers=self.mine,
            batches=[self.reader.batch(each, since=since, before=before) for each in mine],
            members=members,
            items=[
                _distinct(np.concatenate([one.item, seen_L[gather(first_B[each], first_B[each + 1])[0]]]))
                for one, each in zip(mine, members, strict=True)
            ],
            weights=[weights[index] for index in self.mine],
            tokens=int(tokens_B.sum()),
        )

    def _work(self, task: tuple[Requests, int, int]) -> Part:
        requests, since, before = task
        return self.part(requests, since=since, before=before)

    def __reduce__(self) -> tuple[Callable[..., "ShardReader"], tuple[object, ...]]:
        # For a worker process, which works for others and never ahead of itself.
        return _reader, (self.reader, self.shards, self.mine)


def _reader(reader: BatchReader, shards: int, mine: range) -> ShardReader:
    return ShardReader(reader=reader, prefetch=Prefetch.Config(workers=0), shards=shards, mine=mine)


class Admission:
    """Turns parts into worker batches: admits the ids of every global batch, in the order in which batches come.

    Args:
        bags: into which the rows asked of each table are cut; a bag a shard if not given.
    """

    def __init__(self, *, vocabulary: BatchVocabulary, reader: BatchReader, bags: int | None = None) -> None:
        self.vocabulary = vocabulary
        self.reader = reader
        self.bags = bags
        self.kinds = kinds_of(vocabulary)
        self.tables = tables_of(vocabulary)

    def __call__(self, part: Part) -> WorkerBatch:
        asked = part.requests
        features, code_UF = self.reader.items.features, self.reader.items.code[part.item_U]
        given = {
            "items": (features, code_UF),
            "users": (self.reader.users.features, self.reader.users.code[asked.user]),
            "context": (self.reader.context, asked.context),
        }
        time = int(asked.time.max())
        slot: dict[str, np.ndarray] = {}
        evicted: dict[str, np.ndarray] = {}
        for kind, vocabulary in self.kinds.items():
            names, code_NF = given[kind]
            slots = vocabulary(keyed(names, code_NF), time=time)
            first_F = np.array([vocabulary.first_row[name] for name in vocabulary.features], dtype=np.int64)
            slot[kind] = slots.row_I.numpy().reshape(len(code_NF), len(first_F)) - first_F
            freed = slots.evicted.numpy()
            for name, first in vocabulary.first_row.items():
                table = table_name(kind, name)
                evicted[table] = freed[(freed >= first) & (freed < first + self.tables[table])] - first
        things = [
            {
                "items": slot["items"][part.item_U.searchsorted(items)],
                "users": slot["users"][members],
                "context": slot["context"][members],
            }
            for items, members in zip(part.items, part.members, strict=True)
        ]
        return _looked_up(part, things, list(self.tables), evicted, self.bags)


def rows_asked(workspace: Workspace, *, batch_size: int, history: int) -> dict[str, int]:
    """Of how many rows of every table a global batch of full histories asks, about: the distinct codes of its features.

    Counted over the first window, as a plan is made before all later ones: its requests name many items between them,
    as histories do later. A batch asks for no more of them than it has tokens, or requests.
    """
    requests = workspace.requests(workspace.dataset.windows[0].index)
    items, users, context = workspace.items, workspace.users, workspace.inputs.context
    named = {
        "items": (items.features, items.code[_distinct(requests.item)], batch_size * history),
        "users": (users.features, users.code[requests.user], batch_size),
        "context": (context, requests.context, batch_size),
    }
    return {
        table_name(kind, name): min(most, len(np.unique(code_N)))
        for kind, (features, code_NF, most) in named.items()
        for name, code_N in zip(features, code_NF.T, strict=True)
    }


def kinds_of(vocabulary: BatchVocabulary) -> dict[str, Vocabulary]:
    """The vocabularies of items, users and context."""
    return {"items": vocabulary.items, "users": vocabulary.users, "context": vocabulary.context}


def tables_of(vocabulary: BatchVocabulary) -> dict[str, int]:
    """Rows of every table by its name, in the order in which one table would hold them."""
    kinds = kinds_of(vocabulary).items()
    return {table_name(kind, name): ids.capacity for kind, each in kinds for name, ids in each.tables()}


def table_name(kind: str, feature: str) -> str:
    """``KIND/FEATURE``, without the dots that names of modules must not have."""
    return f"{kind}/{feature.replace('.', '%2E')}"


def _distinct(value_N: np.ndarray) -> np.ndarray:
    """Each once, ascending, as ``np.unique``, whose hash table takes ten times as long as this for rows of items."""
    value_N = np.sort(value_N)
    first_N = np.ones(len(value_N), dtype=bool)
    np.not_equal(value_N[1:], value_N[:-1], out=first_N[1:])
    return value_N[first_N]


def _looked_up(
    part: Part,
    things: list[dict[str, np.ndarray]],
    tables: list[str],
    evicted: dict[str, np.ndarray],
    equal_bags: int | None,
) -> WorkerBatch:
    """``things``: for each shard and kind, the slot of each thing's features, ``[N, F]``."""
    shards, by_shard = [], []
    for number, batch, weight, of_kind in zip(part.numbers, part.batches, part.weights, things, strict=True):
        rows: list[np.ndarray] = []
        bags: list[np.ndarray] = []
        begun = 0
        for slot_NF in of_kind.values():
            place_NF = np.zeros_like(slot_NF)
            for feature, slot_N in enumerate(slot_NF.T):
                distinct, place_NF[:, feature] = np.unique(slot_N, return_inverse=True)
                place_NF[:, feature] += begun
                begun += len(distinct)
                rows.append(distinct)
            bags.append(place_NF)
        sizes = np.concatenate([np.full(len(each), each.shape[1], dtype=np.int64) for each in bags])
        shards.append(
            Shard(
                number=number,
                batch=batch,
                weight=weight,
                row_I=torch.from_numpy(np.concatenate([each.reshape(-1) for each in bags])),
                offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)[:-1]])),
                counts=(len(bags[0]), len(bags[1]), len(bags[2])),
                rows=begun,
            )
        )
        by_shard.append(rows)
    length_TL = np.array([[len(rows[table]) for rows in by_shard] for table in range(len(tables))], dtype=np.int64)
    first_TL = (np.cumsum(length_TL.reshape(-1)) - length_TL.reshape(-1)).reshape(length_TL.shape)
    length_TG = length_TL if equal_bags is None else _equal(length_TL.sum(1), equal_bags)
    places = [
        np.arange(length_TL[table, shard]) + first_TL[table, shard]
        for shard in range(len(shards))
        for table in range(len(tables))
    ]
    return WorkerBatch(
        shards=shards,
        ids=KeyedJaggedTensor(
            keys=tables,
            values=torch.from_numpy(np.concatenate([rows[table] for table in range(len(tables)) for rows in by_shard])),
            lengths=torch.from_numpy(length_TG.reshape(-1).astype(np.int32)),
            stride=length_TG.shape[1],
        ),
        place_M=torch.from_numpy(np.concatenate(places)),
        evicted=evicted,
        dense_CF=torch.from_numpy(part.requests.dense),
        tokens=part.tokens,
    )


def _equal(rows_T: np.ndarray, bags: int) -> np.ndarray:
    """Lengths of as equal bags as can be, int64 ``[T, bags]``."""
    return np.diff(rows_T[:, None] * np.arange(bags + 1) // bags, axis=1)
