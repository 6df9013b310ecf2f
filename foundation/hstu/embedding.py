"""Embeddings of categorical features: torchrec tables behind admission tables, and their optimiser.

Shape legend: N rows of a KeyedJaggedTensor, D embedding width.
"""

from typing import cast

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.hstu.id_table import IdTable
from hypercast.training.random import normal_start
from streaming.config import Config


class TableSizes(Config):
    """Rows of embedding tables by feature; features not named have ``default`` rows."""

    default: int = pydantic.Field(default=8192, ge=2)
    rows: dict[str, int] = {}

    def of(self, features: list[str]) -> dict[str, int]:
        """Rows of each of ``features``."""
        return {name: self.rows.get(name, self.default) for name in features}


class FeatureEmbedding(nn.Module):
    """The sum of one embedding per feature.

    Every table starts at zero, so that a row that was evicted and zeroed is as good as new.

    Args:
        capacity: number of rows of each feature's table, by feature name.
        width: D.
    """

    def __init__(self, *, capacity: dict[str, int], width: int) -> None:
        super().__init__()
        self.width = width
        self.features = list(capacity)
        self.ids = nn.ModuleList(IdTable(capacity=rows) for rows in capacity.values())
        self.tables = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=_table(name),
                    embedding_dim=width,
                    num_embeddings=rows,
                    feature_names=[name],
                    init_fn=torch.nn.init.zeros_,
                )
                for name, rows in capacity.items()
            ]
        )
        for table in self.tables.embeddings.values():
            table.sparse = True
            normal_start(table.weight, 0.0)
        self._evicted: dict[str, list[np.ndarray]] = {name: [] for name in capacity}

    def forward(self, codes: KeyedJaggedTensor) -> Tensor:
        """Embed ``codes`` (one value a key and row): float32 ``[N, D]``. In training, new codes are admitted."""
        rows = codes.stride()
        if not self.features:
            return torch.zeros(rows, self.width)
        slots = [self._slots(name, ids, codes[name].values().numpy()) for name, ids in self._admission()]
        slot_of = KeyedJaggedTensor(
            keys=self.features,
            values=torch.from_numpy(np.concatenate(slots)),
            lengths=torch.ones(rows * len(slots), dtype=torch.int32),
        )
        embedded = self.tables(slot_of)
        return torch.stack([embedded[name].values() for name in self.features]).sum(0)

    def statistics(self) -> dict[str, float]:
        """``FEATURE/occupancy``, ``FEATURE/evicted`` and ``FEATURE/refused`` of every table."""
        return {f"{name}/{key}": value for name, ids in self._admission() for key, value in ids.statistics().items()}

    def table(self, name: str) -> nn.Parameter:
        """The weights of feature ``name``, float32 ``[rows, D]``."""
        return self.tables.embeddings[_table(name)].weight

    def _admission(self) -> list[tuple[str, IdTable]]:
        return [(name, cast(IdTable, ids)) for name, ids in zip(self.features, self.ids, strict=True)]

    def _slots(self, name: str, ids: IdTable, code: np.ndarray) -> np.ndarray:
        if not self.training:
            return ids.lookup(code)
        slots, evicted = ids.admit(code)
        if len(evicted):
            with torch.no_grad():
                self.table(name)[torch.from_numpy(evicted)] = 0.0
            self._evicted[name].append(evicted)
        return slots

    def take_evicted(self, name: str) -> Tensor:
        """Slots of feature ``name`` that changed hands since the last call, int64."""
        taken = self._evicted[name]
        self._evicted[name] = []
        return torch.from_numpy(np.concatenate(taken)) if taken else torch.zeros(0, dtype=torch.int64)


def _table(feature: str) -> str:
    # A module may not be called "type" or "forward"; a feature may.
    return f"table_{feature}"


class RowWiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator a row, over sparse gradients: only rows that were looked up are touched.

    ``sum[row] += mean(g[row]**2)``; ``weight[row] -= lr * g[row] / (sqrt(sum[row]) + eps)``. Evicted rows start again
    from an empty accumulator, and the row of slot 0 (unknown ids) is never trained.
    """

    def __init__(self, embeddings: list[FeatureEmbedding], *, learning_rate: float, eps: float = 1e-8) -> None:
        self._owner = [(embedding, name) for embedding in embeddings for name in embedding.features]
        tables = [embedding.table(name) for embedding, name in self._owner]
        super().__init__(tables, {"lr": learning_rate, "eps": eps})
        for table in tables:
            self.state[table]["sum"] = torch.zeros(table.shape[0])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every table that has a gradient; takes no closure."""
        for group in self.param_groups:
            for table, (embedding, name) in zip(group["params"], self._owner, strict=True):
                total = self.state[table]["sum"]
                total[embedding.take_evicted(name)] = 0.0
                if table.grad is not None:
                    gradient = table.grad.coalesce()
                    self._descend(table, total, gradient, learning_rate=group["lr"], eps=group["eps"])

    @staticmethod
    def _descend(table: Tensor, total: Tensor, gradient: Tensor, *, learning_rate: float, eps: float) -> None:
        row, value = gradient.indices()[0], gradient.values()
        if len(row) and row[0] == 0:
            row, value = row[1:], value[1:]
        total[row] += value.square().mean(1)
        table[row] -= learning_rate * value / (total[row].sqrt() + eps).unsqueeze(1)
