"""Interactions between a candidate's tokens, one class each: what a DHEN layer is an ensemble of.

Each maps float ``[C, N, D]`` to float ``[C, N, D]``, so that any of them may stand in any layer.

Shape legend: C candidates, N tokens, D their width, P pairs of tokens (each with itself included).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experts.backbone.dcn import Cross


class SelfAttention(nn.Module):
    """Tokens weigh each other by a softmax over scaled products, in ``heads`` parts of their width."""

    def __init__(self, *, tokens: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_CND: Tensor) -> Tensor:
        """Float ``[C, N, D]``."""
        split = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.query_key_value(x_CND).chunk(3, 2)
        )
        return self.output(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


class CrossTokens(nn.Module):
    """One cross layer of DCN V2 over all tokens side by side."""

    def __init__(self, *, tokens: int, width: int, heads: int) -> None:
        super().__init__()
        self.cross = Cross(width=tokens * width)

    def forward(self, x_CND: Tensor) -> Tensor:
        """Float ``[C, N, D]``."""
        flat = x_CND.flatten(1)
        return self.cross(flat, flat).view_as(x_CND)


class LinearTokens(nn.Module):
    """Each new token is a linear mixture of all tokens."""

    def __init__(self, *, tokens: int, width: int, heads: int) -> None:
        super().__init__()
        self.mix = nn.Linear(tokens, tokens)

    def forward(self, x_CND: Tensor) -> Tensor:
        """Float ``[C, N, D]``."""
        return self.mix(x_CND.transpose(1, 2)).transpose(1, 2)


class DotProducts(nn.Module):
    """Products of all pairs of tokens, as in a factorisation machine, and a linear map from them to new tokens."""

    def __init__(self, *, tokens: int, width: int, heads: int) -> None:
        super().__init__()
        left_P, right_P = torch.triu_indices(tokens, tokens)
        self.pair_P = left_P * tokens + right_P
        self.scale = width**-0.5
        self.expand = nn.Linear(len(self.pair_P), tokens * width)

    def forward(self, x_CND: Tensor) -> Tensor:
        """Float ``[C, N, D]``."""
        product_CNN = x_CND @ x_CND.transpose(1, 2) * self.scale
        return self.expand(product_CNN.flatten(1).index_select(1, self.pair_P)).view_as(x_CND)


class DeepTokens(nn.Module):
    """One hidden layer over all tokens side by side."""

    def __init__(self, *, tokens: int, width: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(tokens * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, tokens * width)
        )

    def forward(self, x_CND: Tensor) -> Tensor:
        """Float ``[C, N, D]``."""
        return self.layers(x_CND.flatten(1)).view_as(x_CND)
