"""Sampled softmax whose cost does not depend on the size of the catalogue, forward and backward in one pass.

Shape legend: T tokens, D model width, I items, N candidates of a token: the next item, then the sampled negatives,
C tokens of a chunk.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2048
"""Tokens at once: what they touch stays in the cache of a core."""


def sampled_softmax(output_TD: Tensor, item_ID: Tensor, candidate_TN: Tensor, *, temperature: float) -> Tensor:
    """Mean cross-entropy of each token's first candidate against its other candidates.

    Args:
        output_TD: float32 ``[T, D]``, what the model says after each token, of unit length.
        item_ID: float32 ``[I, D]``, the catalogue, of unit length.
        candidate_TN: int32 ``[T, N]``, ids of items: the true one first. Negatives that equal it do not count.
        temperature: logits are inner products divided by it.

    Returns:
        float32 ``[]``. Gradients flow to ``output_TD`` and ``item_ID``.

    Raises:
        ValueError: there are more candidates than items; PyTorch's sparse matrices hold no row of that kind.
    """
    if candidate_TN.shape[1] > len(item_ID):
        raise ValueError(
            f"{candidate_TN.shape[1]} candidates a token from a catalogue of {len(item_ID)} items; "
            "take at most as many, for example 129 of 3,706"
        )
    loss: Tensor = _SampledSoftmax.apply(output_TD, item_ID, candidate_TN, temperature)
    return loss


class _SampledSoftmax(torch.autograd.Function):
    """Never holds ``[T, N, D]`` or ``[T, I]``: candidates form a sparse ``[T, I]`` matrix of N entries a row.

    Logits are a product sampled at its entries; the gradient of the outputs is the matrix times the catalogue, the
    gradient of the catalogue its transpose times the outputs, both as weighted sums of rows (``embedding_bag``).
    """

    @staticmethod
    def forward(ctx: Any, output_TD: Tensor, item_ID: Tensor, candidate_TN: Tensor, temperature: float) -> Tensor:
        tokens, count = candidate_TN.shape
        loss = output_TD.new_zeros(())
        grad_output_TD = torch.empty_like(output_TD)
        grad_item_ID = torch.zeros_like(item_ID)
        for first in range(0, tokens, CHUNK):
            output_CD, candidate_CN = output_TD[first : first + CHUNK], candidate_TN[first : first + CHUNK]
            starts = torch.arange(0, (len(output_CD) + 1) * count, count, dtype=torch.int32)
            column = candidate_CN.flatten()
            logit_CN = _sampled_product(output_CD, item_ID, starts, column).view(-1, count).div_(temperature)
            logit_CN[:, 1:].masked_fill_(candidate_CN[:, 1:] == candidate_CN[:, :1], -torch.inf)
            logp_CN = F.log_softmax(logit_CN, dim=1)
            loss -= logp_CN[:, 0].sum()
            grad_CN = logp_CN.exp_()
            grad_CN[:, 0] -= 1.0
            grad = grad_CN.flatten()
            grad_output_TD[first : first + CHUNK] = _weighted_rows(item_ID, column, starts[:-1], grad)
            order, item_starts = _by_item(column, items=len(item_ID))
            owner = order.to(torch.int32).div_(count, rounding_mode="floor")
            grad_item_ID += _weighted_rows(output_CD, owner, item_starts, grad[order])
        ctx.save_for_backward(grad_output_TD, grad_item_ID)
        ctx.scale = 1.0 / (temperature * tokens)
        return loss / tokens

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_output_TD, grad_item_ID = ctx.saved_tensors
        scale = gradient * ctx.scale
        return grad_output_TD * scale, grad_item_ID * scale, None, None


def _sampled_product(left_CD: Tensor, right_ID: Tensor, starts: Tensor, column: Tensor) -> Tensor:
    """``left @ right.T`` at the entries of a sparse matrix in rows, float ``[entries]``."""
    pattern = torch.sparse_csr_tensor(
        starts, column, left_CD.new_zeros(len(column)), (len(left_CD), len(right_ID)), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, left_CD, right_ID.T, beta=0.0).values()


def _weighted_rows(table: Tensor, row: Tensor, starts: Tensor, weight: Tensor) -> Tensor:
    """Sums of ``weight * table[row]`` over the entries between one start and the next, float ``[len(starts), D]``."""
    return F.embedding_bag(row, table, starts, mode="sum", per_sample_weights=weight)


def _by_item(column: Tensor, *, items: int) -> tuple[Tensor, Tensor]:
    """Entries in the order of their items, int64, and where each item's entries start, int32 ``[I]``."""
    # NumPy sorts 16-bit integers by radix, several times faster than by comparison.
    keys = column.numpy().astype(np.uint16 if items <= 2**16 else np.int32)
    count_I = torch.bincount(column, minlength=items)
    return torch.from_numpy(keys.argsort(kind="stable")), (count_I.cumsum(0) - count_I).to(torch.int32)
