"""From codes of categorical features to rows of an embedding table.

Shape legend: N things, F features of each, I rows to look up.
"""

from dataclasses import dataclass, replace
from typing import Annotated, cast

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.hstu.eviction import Eviction, EvictionConfig, LeastRecent
from foundation.hstu.id_table import MISS, IdTable
from streaming.batch import BatchReader, RequestBatch
from streaming.catalogue import UNKNOWN
from streaming.config import Config as BaseConfig
from streaming.errors import ConfigError
from streaming.inputs import Inputs
from streaming.requests import Requests


@dataclass(frozen=True, kw_only=True)
class Slots:
    """What to look up in one embedding table: a bag of rows for each of N things.

    Attributes:
        row_I: int64, bag after bag, one row a feature; a feature's unknown ids share the first of its rows.
        offsets: int64 ``[N + 1]``, where each bag begins in ``row_I``.
        evicted: int64 ``[E]``, rows that no longer belong to the id they belonged to before. An embedding must see
            every batch's, in order, or it keeps what another id has learned.
    """

    row_I: Tensor
    offsets: Tensor
    evicted: Tensor


class Vocabulary(nn.Module):
    """An admission table a feature, their rows one after the other in one embedding table.

    It knows no weights, so models that train on the same batches can share it. In training mode new codes are admitted,
    in evaluation mode never.

    Args:
        capacity: number of rows of each feature, by feature name.
        eviction: which ids make room in a full table; None for the least recently seen.
    """

    def __init__(self, capacity: dict[str, int], *, eviction: Eviction | None = None) -> None:
        super().__init__()
        self.features = list(capacity)
        self.first_row = dict(zip(capacity, np.cumsum([0, *capacity.values()])[:-1].tolist(), strict=True))
        self.rows = sum(capacity.values())
        self.ids = nn.ModuleList(IdTable(capacity=rows, eviction=eviction) for rows in capacity.values())

    def forward(self, codes: KeyedJaggedTensor, *, time: int) -> Slots:
        """Rows of ``codes``, which hold one value a key and row; ``time`` is the batch's latest, in microseconds."""
        keys, things = codes.keys(), codes.stride()
        code_N = dict(zip(keys, codes.values().numpy().reshape(len(keys), things), strict=True))
        row_NF = np.zeros((things, len(self.features)), dtype=np.int64)
        evicted = [np.zeros(0, dtype=np.int64)]
        for index, (name, ids) in enumerate(self.tables()):
            if self.training:
                slot_N, freed = ids.admit(code_N[name], time=time)
                evicted.append(freed + self.first_row[name])
            else:
                slot_N = ids.lookup(code_N[name])
            row_NF[:, index] = slot_N + self.first_row[name]
        return Slots(
            row_I=torch.from_numpy(row_NF.reshape(-1)),
            offsets=torch.arange(things + 1) * len(self.features),
            evicted=torch.from_numpy(np.concatenate(evicted)),
        )

    def collision_rates(self, code_NF: np.ndarray) -> dict[str, float]:
        """``FEATURE/collision_rate``: the share of known codes that have no row of their own, and so share one."""
        rates = {}
        for (name, ids), code_N in zip(self.tables(), code_NF.T, strict=True):
            slot_K = ids.lookup(code_N[code_N != UNKNOWN])
            rates[f"{name}/collision_rate"] = float((slot_K == MISS).mean()) if len(slot_K) else 0.0
        return rates

    def tables(self) -> list[tuple[str, IdTable]]:
        """The admission tables by feature."""
        return [(name, cast(IdTable, ids)) for name, ids in zip(self.features, self.ids, strict=True)]

    def statistics(self) -> dict[str, float]:
        """``FEATURE/occupancy``, ``.../evicted``, ``.../refused`` and ``.../collisions``, see :class:`IdTable`."""
        return {f"{name}/{key}": value for name, ids in self.tables() for key, value in ids.statistics().items()}


@dataclass(frozen=True, kw_only=True)
class BatchSlots(Slots):
    """All bags of a batch, for one look-up: its distinct items', then its requests' users' and contexts'.

    Attributes:
        counts: how many there are of each; ``table(slots).split(slots.counts)`` takes them apart.
    """

    counts: tuple[int, int, int]

    def of_items(self, item_U: Tensor) -> "BatchSlots":
        """The bags of these of the distinct items, and all others; int64 ``[U]``."""
        bag_N = torch.cat([item_U, torch.arange(self.counts[0], sum(self.counts))])
        length_N = self.offsets.diff()[bag_N]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), length_N.cumsum(0)])
        place_I = torch.arange(int(offsets[-1])) + (self.offsets[bag_N] - offsets[:-1]).repeat_interleave(length_N)
        counts = (len(item_U), *self.counts[1:])
        return replace(self, row_I=self.row_I[place_I], offsets=offsets, counts=counts)


class BatchVocabulary(nn.Module):
    """The vocabularies of items, users and context, their rows one after the other in one embedding table."""

    class Config(BaseConfig):
        """Attributes:

        default: rows of a feature's embedding table that are not given by ``rows``.
        rows: by feature.
        eviction: which ids make room: ``{policy: lru}``, ``{policy: lfu, half_life_days: 28}`` or
            ``{policy: ttl, days: 90}``, see :mod:`foundation.hstu.eviction`.
        """

        default: int = pydantic.Field(default=8192, ge=2)
        rows: dict[str, Annotated[int, pydantic.Field(ge=2)]] = {}
        eviction: EvictionConfig = LeastRecent.Config()

        def build(self, inputs: Inputs) -> "BatchVocabulary":
            return BatchVocabulary(config=self, inputs=inputs)

    def __init__(self, *, config: Config, inputs: Inputs) -> None:
        super().__init__()
        known = [*inputs.item_features, *inputs.user_features, *inputs.context]
        if unknown := sorted(config.rows.keys() - set(known)):
            raise ConfigError(
                f"vocabulary.rows: there is no feature {', '.join(unknown)}; allowed are {', '.join(known)}."
            )

        def vocabulary(features: list[str]) -> Vocabulary:
            capacity = {name: config.rows.get(name, config.default) for name in features}
            return Vocabulary(capacity, eviction=config.eviction.build())

        self.items = vocabulary(inputs.item_features)
        self.users = vocabulary(inputs.user_features)
        self.context = vocabulary(inputs.context)
        self.rows = sum(each.rows for each in self._kinds().values())

    def forward(self, batch: RequestBatch) -> BatchSlots:
        """Rows of everything categorical in ``batch``."""
        time = int(batch.time_B.max()) if len(batch) else 0
        codes = {"items": batch.items, "users": batch.users, "context": batch.context}
        parts, first_row, first_bag = [], 0, 0
        for kind, vocabulary in self._kinds().items():
            slots = vocabulary(codes[kind], time=time)
            parts.append((slots.row_I + first_row, slots.offsets[:-1] + first_bag, slots.evicted + first_row))
            first_row += vocabulary.rows
            first_bag += len(slots.row_I)
        rows, bags, evicted = zip(*parts, strict=True)
        return BatchSlots(
            row_I=torch.cat(rows),
            offsets=torch.cat([*bags, torch.tensor([first_bag])]),
            evicted=torch.cat(evicted),
            counts=(codes["items"].stride(), len(batch), len(batch)),
        )

    def statistics(self) -> dict[str, float]:
        """``tables/KIND/FEATURE/...`` of the training so far, see :meth:`Vocabulary.statistics`."""
        return _by_kind({kind: vocabulary.statistics() for kind, vocabulary in self._kinds().items()})

    def collision_rates(self, reader: BatchReader, requests: Requests) -> dict[str, float]:
        """``tables/KIND/FEATURE/collision_rate`` of the items, users and contexts that ``requests`` ask for.

        Before a window has been trained on, that is how much of it shares a row when it is predicted.
        """
        codes = {
            "items": reader.items.code[requests.item],
            "users": reader.users.code[requests.user],
            "context": requests.context,
        }
        return _by_kind({kind: each.collision_rates(codes[kind]) for kind, each in self._kinds().items()})

    def _kinds(self) -> dict[str, Vocabulary]:
        return {"items": self.items, "users": self.users, "context": self.context}


def _by_kind(values: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"tables/{kind}/{name}": value for kind, each in values.items() for name, value in each.items()}
