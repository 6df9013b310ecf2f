"""HSTU with softmax attention in place of its pointwise attention, all else equal: what pointwise attention is worth.

Shape legend: T tokens of all sequences, H heads, C width of a head.
"""

from torch import Tensor, nn

from benchmarks.sequential.transformer import causal_attention
from foundation.hstu.cache import KeyValueCache
from foundation.hstu.layer import HSTULayer, HSTUStack, Sequences


class SoftmaxHSTULayer(HSTULayer):
    """``softmax(scale q k^T + position_bias)`` over the tokens before and the token itself, divided by nothing."""

    def _attend(
        self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, sequences: Sequences, cache: KeyValueCache | None
    ) -> Tensor:
        if cache is not None or self.time_bias is not None:
            raise ValueError("softmax attention here takes neither stored keys and values nor a bias by time")
        return causal_attention(q_THD, k_THD, v_THD, sequences.offsets, bias_N=self.position_bias)


class SoftmaxHSTUStack(HSTUStack):
    """An HSTU stack of such layers; parameters have the same names, hence the same initial values."""

    def __init__(self, config: HSTUStack.Config, *, width: int, positions: int, dropouts: list[nn.Module]) -> None:
        super().__init__(config, width=width, positions=positions, dropouts=dropouts)
        self.layers = nn.ModuleList(
            SoftmaxHSTULayer(
                width=width,
                heads=config.heads,
                positions=positions,
                time_buckets=config.time_buckets,
                dropout=dropout,
            )
            for dropout in dropouts
        )
