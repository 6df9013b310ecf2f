"""SASRec (arXiv 1808.09781): causal softmax attention over jagged sequences, by PyTorch's fused attention.

Shape legend: T tokens of all sequences, B of them padded to M tokens, N distances,
D model width, H heads, C width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.hstu.layer import Sequences

GROUPS = 4
"""Groups of sequences of similar length in a batch."""


class TransformerLayer(nn.Module):
    """``x + attention(norm(x))``, then ``x + f2(relu(f1(norm(x))))``, with SASRec's hidden width D."""

    def __init__(self, *, width: int, heads: int, dropout: nn.Module) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm_forward = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x_TD: Tensor, sequences: Sequences) -> Tensor:
        """Float ``[T, D]`` to float ``[T, D]``."""
        q_THC, k_THC, v_THC = self.project(self.norm_attention(x_TD)).unflatten(1, (3, self.heads, -1)).unbind(1)
        attended_THC = causal_attention(q_THC, k_THC, v_THC, sequences.offsets)
        x_TD = x_TD + self.dropout(self.output(attended_THC.flatten(1)))
        inner_TD = self.dropout(F.relu(self.inner(self.norm_forward(x_TD))))
        return x_TD + self.dropout(self.outer(inner_TD))


class TransformerStack(nn.Module):
    """Transformer layers one above the other, with a final LayerNorm."""

    def __init__(self, *, width: int, heads: int, dropouts: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(width=width, heads=heads, dropout=each) for each in dropouts)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_TD: Tensor, sequences: Sequences) -> Tensor:
        """Float ``[T, D]`` to float ``[T, D]``."""
        for layer in self.layers:
            x_TD = layer(x_TD, sequences)
        return self.norm(x_TD)


def causal_attention(
    q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, offsets: Tensor, *, bias_N: Tensor | None = None
) -> Tensor:
    """Softmax attention of each token over its sequence's tokens up to itself, float ``[T, H, C]``.

    ``bias_N`` is added to the scores, by distance in positions. Sequences are padded at their ends: padding comes after
    every token, so that causality alone hides it. Those of similar length are padded together.
    """
    lengths = offsets.diff()
    sorted_rows = lengths.argsort(stable=True)
    qkv_3THC = torch.stack([q_THC, k_THC, v_THC])
    tokens, attended = [], []
    for rows in sorted_rows.tensor_split(min(GROUPS, len(sorted_rows))):
        place_M = torch.arange(int(lengths[rows[-1]]))
        inside_BM = place_M < lengths[rows, None]
        # Padding reads some token of the batch; nothing that is kept sees it.
        token_BM = (offsets[rows, None] + place_M).clamp(max=len(q_THC) - 1)
        q_BHMC, k_BHMC, v_BHMC = qkv_3THC[:, token_BM].transpose(2, 3)
        attended_BHMC = F.scaled_dot_product_attention(
            q_BHMC,
            k_BHMC,
            v_BHMC,
            attn_mask=None if bias_N is None else _causal_bias(bias_N, place_M),
            is_causal=bias_N is None,
        )
        attended.append(attended_BHMC.transpose(1, 2)[inside_BM])
        tokens.append(token_BM[inside_BM])
    return torch.cat(attended)[torch.cat(tokens).argsort()]


def _causal_bias(bias_N: Tensor, place_M: Tensor) -> Tensor:
    """What is added to scores, ``[M, M]``: the bias by distance, clamped to its last entry; -inf where not seen."""
    distance_MM = place_M[:, None] - place_M
    bias_MM = bias_N[distance_MM.clamp(0, len(bias_N) - 1)]
    return bias_MM.masked_fill(distance_MM < 0, -torch.inf)
