"""Embedding tables for inference with int8 or int4 rows, each row with a scale and an offset of its own.

fbgemm's fused rows: ``D + 8`` bytes for int8 (float32 scale and offset), ``D / 2 + 4`` for int4 (float16), of ``4 D``.

Shape legend: R rows, D embedding width, N things to embed, I rows to look up, Z bytes of a row.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from foundation.hstu.vocabulary import Slots

Quantised = Literal["int8", "int4"]


class CompactTable(nn.Module):
    """What :class:`foundation.hstu.embedding.FeatureEmbedding` looks up: the sum of a bag's rows, without gradients.

    Args:
        rows_RZ: uint8, fused rows as :func:`quantised` makes them.
        name: which of them.
    """

    def __init__(self, rows_RZ: Tensor, *, name: Quantised) -> None:
        super().__init__()
        self.name = name
        self._rows_RZ = rows_RZ
        self.width = unfused_width(rows_RZ.shape[1], name)

    @property
    def rows(self) -> int:
        """R."""
        return len(self._rows_RZ)

    @property
    def nbytes(self) -> int:
        """Of all rows, scales and offsets."""
        return self._rows_RZ.nbytes

    def tensors(self) -> dict[str, Tensor]:
        """As kept on disk."""
        return {"rows": self._rows_RZ}

    def forward(self, slots: Slots) -> Tensor:
        """Float32 ``[N, D]``.

        Raises:
            RuntimeError: rows changed hands, as they do in training only.
        """
        if len(slots.evicted):
            raise RuntimeError("a compact table cannot start rows again: call eval() on the vocabulary before serving")
        look_up = {
            "int8": torch.ops.quantized.embedding_bag_byte_rowwise_offsets,
            "int4": torch.ops.quantized.embedding_bag_4bit_rowwise_offsets,
        }[self.name]
        return look_up(self._rows_RZ, slots.row_I, slots.offsets, include_last_offset=True)


def quantised(weight_RD: Tensor, name: Quantised) -> CompactTable:
    """The table of a float32 weight, 64 Ki rows at a time."""
    fbgemm = torch.ops.fbgemm

    def fused(part_RD: Tensor) -> Tensor:
        if name == "int4":
            return fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(part_RD, 4)
        return fbgemm.FloatToFused8BitRowwiseQuantized(part_RD)

    parts = [fused(part.contiguous()) for part in weight_RD.detach().split(1 << 16)]
    return CompactTable(torch.cat(parts), name=name)


def unfused_width(row_bytes: int, name: Quantised) -> int:
    """D of fused rows of that many bytes."""
    return row_bytes - 8 if name == "int8" else 2 * (row_bytes - 4)
