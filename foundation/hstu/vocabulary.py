"""From codes of categorical features to rows of an embedding table.

Shape legend: N rows of a KeyedJaggedTensor, F features, M distinct rows of the embedding table.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.hstu.id_table import IdTable
from streaming.batch import RequestBatch
from streaming.config import Config as BaseConfig
from streaming.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class Slots:
    """What to look up: each distinct row once, so that gradients arrive with one entry a row.

    Attributes:
        row_M: int64, distinct rows, ascending; a feature's unknown ids share the first of its rows.
        place_NF: int64, index into ``row_M``, one a feature.
        evicted: int64 ``[E]``, rows that now belong to another id than before. An embedding must see every batch's, in
            order, or it keeps what another id has learned.
    """

    row_M: Tensor
    place_NF: Tensor
    evicted: Tensor


class Vocabulary(nn.Module):
    """An admission table a feature, their rows one after the other in one embedding table.

    It knows no weights, so models that train on the same batches can share it. In training mode new codes are admitted,
    in evaluation mode never.

    Args:
        capacity: number of rows of each feature, by feature name.
    """

    def __init__(self, capacity: dict[str, int]) -> None:
        super().__init__()
        self.features = list(capacity)
        self.first_row = dict(zip(capacity, np.cumsum([0, *capacity.values()])[:-1].tolist(), strict=True))
        self.rows = sum(capacity.values())
        self.ids = nn.ModuleList(IdTable(capacity=rows) for rows in capacity.values())

    def forward(self, codes: KeyedJaggedTensor) -> Slots:
        """Rows of ``codes``, which hold one value a key and row."""
        if not self.features:
            nothing = torch.zeros(0, dtype=torch.int64)
            return Slots(row_M=nothing, place_NF=torch.zeros(codes.stride(), 0, dtype=torch.int64), evicted=nothing)
        rows, evicted = [], []
        for name, ids in self.tables():
            code = codes[name].values().numpy()
            slot, freed = ids.admit(code) if self.training else (ids.lookup(code), np.zeros(0, dtype=np.int64))
            rows.append(slot + self.first_row[name])
            evicted.append(freed + self.first_row[name])
        distinct, place = np.unique(np.stack(rows, axis=1), return_inverse=True)
        return Slots(
            row_M=torch.from_numpy(distinct),
            place_NF=torch.from_numpy(place.reshape(-1, len(rows))),
            evicted=torch.from_numpy(np.concatenate(evicted)),
        )

    def tables(self) -> list[tuple[str, IdTable]]:
        """The admission tables by feature."""
        return [(name, cast(IdTable, ids)) for name, ids in zip(self.features, self.ids, strict=True)]

    def statistics(self) -> dict[str, float]:
        """``FEATURE/occupancy``, ``FEATURE/evicted`` and ``FEATURE/refused`` of every feature."""
        return {f"{name}/{key}": value for name, ids in self.tables() for key, value in ids.statistics().items()}


@dataclass(frozen=True, kw_only=True)
class BatchSlots:
    """Rows of a batch's distinct items (U), and of its requests' users and contexts (B)."""

    items: Slots
    users: Slots
    context: Slots


class BatchVocabulary(nn.Module):
    """The vocabularies of items, users and context."""

    class Config(BaseConfig):
        """Rows of embedding tables by feature; features not named have ``default`` rows."""

        default: int = pydantic.Field(default=8192, ge=2)
        rows: dict[str, int] = {}

        def build(self, inputs: Inputs) -> "BatchVocabulary":
            return BatchVocabulary(config=self, inputs=inputs)

    def __init__(self, *, config: Config, inputs: Inputs) -> None:
        super().__init__()

        def vocabulary(features: list[str]) -> Vocabulary:
            return Vocabulary({name: config.rows.get(name, config.default) for name in features})

        self.items = vocabulary(inputs.item_features)
        self.users = vocabulary(inputs.user_features)
        self.context = vocabulary(inputs.context)

    def forward(self, batch: RequestBatch) -> BatchSlots:
        """Rows of everything categorical in ``batch``."""
        return BatchSlots(
            items=self.items(batch.items), users=self.users(batch.users), context=self.context(batch.context)
        )

    def statistics(self) -> dict[str, float]:
        """``KIND/FEATURE/...``, see :meth:`Vocabulary.statistics`."""
        kinds = {"items": self.items, "users": self.users, "context": self.context}
        return {f"{kind}/{name}": value for kind, each in kinds.items() for name, value in each.statistics().items()}
