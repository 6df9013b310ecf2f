"""Embeddings of categorical features: a torchrec table behind a vocabulary, and its optimiser.

Shape legend: N things to embed, F features of each, M distinct rows of the table, D embedding width.
"""

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.hstu.vocabulary import Slots, Vocabulary
from hypercast.training.random import normal_start

_FEATURE = "feature"


class FeatureEmbedding(nn.Module):
    """The sum of one embedding a feature, looked up in one table that holds the rows of all of them.

    The table starts at zero, so that a row that was evicted and zeroed is as good as new.
    """

    def __init__(self, *, rows: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.collection = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name="table",
                    embedding_dim=width,
                    num_embeddings=max(rows, 1),
                    feature_names=[_FEATURE],
                    init_fn=torch.nn.init.zeros_,
                )
            ]
        )
        self.collection.embeddings["table"].sparse = True
        normal_start(self.weight, 0.0)
        self._evicted: list[Tensor] = []

    @staticmethod
    def of(vocabulary: Vocabulary, *, width: int) -> "FeatureEmbedding":
        """An embedding with a row for each of the vocabulary's."""
        return FeatureEmbedding(rows=vocabulary.rows, width=width)

    @property
    def weight(self) -> nn.Parameter:
        """Float32 ``[rows, D]``."""
        return self.collection.embeddings["table"].weight

    def forward(self, slots: Slots) -> Tensor:
        """Float32 ``[N, D]``. Rows that changed hands are zeroed before they are looked up."""
        things, features = slots.place_NF.shape
        if features == 0:
            return torch.zeros(things, self.width)
        if len(slots.evicted):
            with torch.no_grad():
                self.weight[slots.evicted] = 0.0
            self._evicted.append(slots.evicted)
        distinct = KeyedJaggedTensor(
            keys=[_FEATURE], values=slots.row_M, lengths=torch.ones(len(slots.row_M), dtype=torch.int32)
        )
        row_MD = self.collection(distinct)[_FEATURE].values()
        return row_MD.index_select(0, slots.place_NF.reshape(-1)).reshape(things, features, self.width).sum(1)

    def take_evicted(self) -> Tensor:
        """Rows that changed hands since the last call, int64."""
        taken = torch.cat(self._evicted) if self._evicted else torch.zeros(0, dtype=torch.int64)
        self._evicted = []
        return taken


class RowWiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator a row, over sparse gradients: only rows that were looked up are touched.

    ``sum[row] += mean(g[row]**2)``; ``weight[row] -= lr * g[row] / (sqrt(sum[row]) + eps)``. Evicted rows start again
    from an empty accumulator.
    """

    def __init__(self, embeddings: list[FeatureEmbedding], *, learning_rate: float, eps: float = 1e-8) -> None:
        self._embeddings = embeddings
        super().__init__([embedding.weight for embedding in embeddings], {"lr": learning_rate, "eps": eps})
        for embedding in embeddings:
            self.state[embedding.weight]["sum"] = torch.zeros(len(embedding.weight))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every table that has a gradient; takes no closure."""
        for group in self.param_groups:
            for embedding in self._embeddings:
                weight = embedding.weight
                total = self.state[weight]["sum"]
                total[embedding.take_evicted()] = 0.0
                if weight.grad is None:
                    continue
                # Each row was looked up once (see Slots), so there is nothing to coalesce.
                row, value = weight.grad._indices()[0], weight.grad._values()
                summed = total[row] + value.square().mean(1)
                total[row] = summed
                scale = -group["lr"] / (summed.sqrt() + group["eps"])
                weight.index_add_(0, row, value * scale.unsqueeze(1))
