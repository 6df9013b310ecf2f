"""Embeddings of categorical features: an fbgemm table-batched embedding whose optimiser runs inside backward.

Shape legend: N things to embed, D embedding width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn

from foundation.hstu.vocabulary import BatchVocabulary, Slots, Vocabulary
from hypercast.training.random import normal_start

MULTIPLE = 4
"""Embedding widths are multiples of this: what fbgemm's kernels are written for."""


class FeatureEmbedding(nn.Module):
    """The sum of one embedding a feature, in one table that holds the rows of all features.

    The table starts at zero, so that a row that was evicted and zeroed is as good as new. It lies where the module is
    built: ``with torch.device("cuda"): FeatureEmbedding(...)`` puts it into a GPU's memory.

    The backward pass of a lookup updates the table by row-wise Adagrad; no gradient is ever stored. So look up once a
    step, and let :class:`RowWiseAdagrad` set the learning rate, which is 0 until then.

    Args:
        rows: of the table; 0 is allowed where nothing is looked up.
        width: D, a multiple of 4.

    Raises:
        ValueError: the width is not a multiple of 4.
    """

    def __init__(self, *, rows: int, width: int) -> None:
        super().__init__()
        if width % MULTIPLE:
            raise ValueError(f"embedding width {width} must be a multiple of {MULTIPLE}. Example: 64.")
        self.width = width
        self._lookup = (_table_batched(max(rows, 1), width, torch.get_default_device()),)  # hidden from state_dict()
        self.weight = nn.Parameter(self._lookup[0].split_embedding_weights()[0])
        """Float32 ``[rows, D]``: the memory that fbgemm reads and updates, not a copy."""
        normal_start(self.weight, 0.0)

    @staticmethod
    def of(vocabulary: Vocabulary | BatchVocabulary, *, width: int) -> "FeatureEmbedding":
        """An embedding with a row for each of the vocabulary's."""
        return FeatureEmbedding(rows=vocabulary.rows, width=width)

    @property
    def learning_rate(self) -> float:
        """Of the updates in backward."""
        return self._lookup[0].get_learning_rate()

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._lookup[0].set_learning_rate(value)

    @property
    def squares(self) -> Tensor:
        """Float32 ``[rows]``: the sums of squared gradients that Adagrad divides by; write to it in place."""
        return self._lookup[0].split_optimizer_states()[0][0]

    def forward(self, slots: Slots) -> Tensor:
        """Float32 ``[N, D]``. Rows that changed hands start again before they are looked up.

        Raises:
            RuntimeError: the module was copied or moved after it was built.
        """
        lookup, device = self._lookup[0], self.weight.device
        if self.weight.data_ptr() != lookup.split_embedding_weights()[0].data_ptr():
            raise RuntimeError(
                "this embedding was copied or moved, and its weight is no longer the table that is looked up. Build "
                "another under `with torch.device(...)` and load this one's state_dict() into it."
            )
        if len(slots.evicted):
            evicted = slots.evicted.to(device)
            with torch.no_grad():
                self.weight[evicted] = 0.0
                self.squares[evicted] = 0.0
        row_I, offsets = slots.row_I.to(device), slots.offsets.to(device)
        if torch.is_grad_enabled():
            return lookup(row_I, offsets)
        with torch.inference_mode(False), torch.no_grad():  # on a CPU fbgemm has its lookup under autograd only
            return lookup(row_I, offsets)


class RowWiseAdagrad:
    """Adagrad with one accumulator a row, run by fbgemm inside backward: only rows that were looked up are touched.

    ``squares[row] += mean(g[row]**2)``; ``weight[row] -= learning_rate * g[row] / (sqrt(squares[row]) + 1e-8)``, where
    ``g[row]`` is the row's summed gradient. This object sets the learning rate, empties the accumulators and knows the
    state; it has no step.
    """

    def __init__(self, embeddings: list[FeatureEmbedding], *, learning_rate: float) -> None:
        self.embeddings = embeddings
        for embedding in embeddings:
            embedding.learning_rate = learning_rate
            embedding.squares.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Learning rates and accumulators, in the order of the embeddings; the accumulators are not copied."""
        return {
            "learning_rate": [embedding.learning_rate for embedding in self.embeddings],
            "squares": [embedding.squares for embedding in self.embeddings],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        for embedding, learning_rate, squares in zip(
            self.embeddings, state["learning_rate"], state["squares"], strict=True
        ):
            embedding.learning_rate = learning_rate
            embedding.squares.copy_(squares)


def _table_batched(rows: int, width: int, device: torch.device) -> SplitTableBatchedEmbeddingBagsCodegen:
    """One table of zeros on ``device``, with exact row-wise Adagrad at learning rate 0 in its backward pass."""
    location, compute = placement(device)
    return SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, width, location, compute)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.0,
        eps=1e-8,
        pooling_mode=PoolingMode.SUM,
        stochastic_rounding=False,
        # A CPU's kernels check every row themselves; a GPU's would read past the table.
        bounds_check_mode=BoundsCheckMode.NONE if compute == ComputeDevice.CPU else BoundsCheckMode.FATAL,
        device=device,
    )


def placement(device: torch.device) -> tuple[EmbeddingLocation, ComputeDevice]:
    """Where fbgemm keeps a table of ``device`` and what computes on it.

    Raises:
        ValueError: the device is neither a CPU nor a CUDA GPU.
    """
    if device.type == "cpu":
        return EmbeddingLocation.HOST, ComputeDevice.CPU
    if device.type == "cuda":
        return EmbeddingLocation.DEVICE, ComputeDevice.CUDA
    raise ValueError(f"embedding tables cannot lie on {device.type!r}: allowed are cpu, cuda. Example: cuda:0")
