"""The HSTU layer (arXiv 2402.17152, section 3; equations 1 to 3).

Shape legend: T tokens of all sequences, D model width, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.hstu.attention.dispatch import Backend, hstu_attention, hstu_attention_cached
from foundation.hstu.cache import KeyValueCache
from foundation.hstu.recompute import recomputed
from hypercast.training.random import normal_start
from streaming.config import Config as BaseConfig


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """How jagged tokens form sequences; what attention needs beside the tokens.

    Attributes:
        offsets: int64 ``[B + 1]``.
        num_targets: int64 ``[B]``, targets at each sequence's end.
        contextual_len: context tokens at each sequence's start.
        timestamps: int64 microseconds ``[T]``.
        max_seq_len: the divisor N of the attention weights.
    """

    offsets: Tensor
    num_targets: Tensor
    contextual_len: int
    timestamps: Tensor
    max_seq_len: int


class HSTULayer(nn.Module):
    """``U, V, Q, K = split(SiLU(f1(norm(x))))``; ``y = f2(norm(A V) * U) + x``.

    Attributes:
        width, heads: D and H; heads share D evenly.
        positions: entries of the table of biases by distance.
        time_buckets: entries of the table of biases by time; 0 for none.
        max_distance, full_tail: see :func:`foundation.hstu.attention.dispatch.hstu_attention`.
        recompute: keep only the layer's input for backward, and compute the rest again.
        backend: of attention; the fastest that runs here if None.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        positions: int,
        time_buckets: int,
        dropout: nn.Module,
        max_distance: int | None = None,
        full_tail: int = 0,
        recompute: bool = False,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.recompute = recompute
        self.backend = backend
        self.max_distance = max_distance
        self.full_tail = full_tail
        self.norm_input = nn.LayerNorm(width)
        self.project = nn.Linear(width, 4 * width)
        self.norm_output = nn.LayerNorm(width)
        self.output = nn.Linear(width, width)
        self.position_bias = nn.Parameter(torch.zeros(positions))
        normal_start(self.position_bias, 0.02)
        self.time_bias = nn.Parameter(torch.zeros(time_buckets)) if time_buckets else None
        if self.time_bias is not None:
            normal_start(self.time_bias, 0.02)
        self.dropout = dropout

    def forward(self, x_TD: Tensor, sequences: Sequences, cache: KeyValueCache | None = None) -> Tensor:
        """Float ``[T, D]`` to float ``[T, D]``.

        With a ``cache``, ``x_TD`` and ``sequences`` are the last tokens of sequences whose earlier ones it holds;
        forward only.
        """

        def run(given_TD: Tensor) -> Tensor:
            u_TD, v_THD, q_THD, k_THD = self._project(given_TD)
            return self._finish(given_TD, u_TD, self._attend(q_THD, k_THD, v_THD, sequences, cache))

        return recomputed(self, run, x_TD) if self.recompute and torch.is_grad_enabled() else run(x_TD)

    def encode(
        self, x_TD: Tensor, sequences: Sequences, cache: KeyValueCache | None = None
    ) -> tuple[Tensor, KeyValueCache]:
        """:meth:`forward`, and the cache with these tokens added: those of context and history, never targets."""
        u_TD, v_THD, q_THD, k_THD = self._project(x_TD)
        attended_THD = self._attend(q_THD, k_THD, v_THD, sequences, cache)
        return self._finish(x_TD, u_TD, attended_THD), _add(k_THD, v_THD, sequences, cache)

    def store(self, x_TD: Tensor, sequences: Sequences, cache: KeyValueCache | None = None) -> KeyValueCache:
        """The cache of :meth:`encode` alone; no attention is computed."""
        _, v_THD, _, k_THD = self._project(x_TD)
        return _add(k_THD, v_THD, sequences, cache)

    def _project(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``U [T, D], V, Q, K [T, H, D / H]``."""
        u_TD, *vqk = F.silu(self.project(self.norm_input(x_TD))).chunk(4, dim=1)
        v_THD, q_THD, k_THD = (part.unflatten(1, (self.heads, -1)) for part in vqk)
        return u_TD, v_THD, q_THD, k_THD

    def _attend(
        self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, sequences: Sequences, cache: KeyValueCache | None
    ) -> Tensor:
        options: dict[str, Any] = {
            "max_seq_len": sequences.max_seq_len,
            "num_targets": sequences.num_targets,
            "contextual_len": sequences.contextual_len,
            "max_distance": self.max_distance,
            "full_tail": self.full_tail,
            "position_bias": self.position_bias,
            "time_bias": self.time_bias,
            "timestamps": sequences.timestamps,
            "backend": self.backend,
        }
        if cache is None:
            return hstu_attention(q_THD, k_THD, v_THD, sequences.offsets, **options)
        stored = (cache.keys_SHD, cache.values_SHV, cache.offsets)
        options["cache_timestamps"] = cache.timestamps
        return hstu_attention_cached(q_THD, k_THD, v_THD, sequences.offsets, *stored, **options)

    def _finish(self, x_TD: Tensor, u_TD: Tensor, attended_THD: Tensor) -> Tensor:
        return self.output(self.dropout(self.norm_output(attended_THD.flatten(1)) * u_TD)) + x_TD


def _add(k_THD: Tensor, v_THD: Tensor, sequences: Sequences, cache: KeyValueCache | None) -> KeyValueCache:
    new = KeyValueCache(
        # Copies: the views would keep all four projections in memory.
        keys_SHD=k_THD.contiguous(),
        values_SHV=v_THD.contiguous(),
        offsets=sequences.offsets,
        timestamps=sequences.timestamps,
    )
    return new if cache is None else cache.extend(new)


class HSTUStack(nn.Module):
    """HSTU layers one above the other, with a final LayerNorm."""

    class Config(BaseConfig):
        """Attributes:

        layers, heads: how many.
        time_buckets: each a step of 0.301 in the logarithm of seconds; 0 for no bias by time.
        max_distance: positions of history that a token looks back; null for no limit.
        full_tail: tokens at the history's end (and, above 0, the targets) that look back without limit.
        recompute: keep each layer's input only and compute its activations again in backward: less memory, more time.
        backend: of attention; null for the fastest that runs here.
        """

        layers: int = pydantic.Field(default=2, ge=1)
        heads: int = pydantic.Field(default=2, ge=1)
        time_buckets: int = pydantic.Field(default=64, ge=0)
        max_distance: int | None = pydantic.Field(default=None, ge=0)
        full_tail: int = pydantic.Field(default=0, ge=0)
        recompute: bool = False
        backend: Backend | None = None

    def __init__(self, config: Config, *, width: int, positions: int, dropouts: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            HSTULayer(
                width=width,
                heads=config.heads,
                positions=positions,
                time_buckets=config.time_buckets,
                dropout=dropout,
                max_distance=config.max_distance,
                full_tail=config.full_tail,
                recompute=config.recompute,
                backend=config.backend,
            )
            for dropout in dropouts
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x_TD: Tensor, sequences: Sequences, caches: Sequence[KeyValueCache] | None = None) -> Tensor:
        """Float ``[T, D]`` to float ``[T, D]``; with ``caches`` of :meth:`encode`, of tokens that come after those."""
        for index, layer in enumerate(self.layers):
            x_TD = layer(x_TD, sequences, None if caches is None else caches[index])
        return self.norm(x_TD)

    def encode(
        self, x_TD: Tensor, sequences: Sequences, caches: Sequence[KeyValueCache] | None = None
    ) -> list[KeyValueCache]:
        """Keys and values of context and history, layer by layer, for targets and later events to attend to.

        The last layer's output is not computed: nobody asks for that of a history. With ``caches``, the tokens are new
        events after those stored, and only they are encoded: what an event sees is settled when it happens, so the
        result is that of encoding everything anew, as long as no stored token changes. (One does where a history loses
        its oldest events to a limit on its length, or where context depends on the request.)

        Raises:
            ValueError: there are targets, or stored tokens would now see less: with ``max_distance`` and ``full_tail``,
                new events end the privilege of the tail before them.
        """
        if sequences.num_targets.any():
            raise ValueError(
                f"num_targets are {sequences.num_targets.tolist()[:8]}; only context and history are stored: encode "
                "those with num_targets 0, and give targets to the stack together with the caches"
            )
        layers = [cast(HSTULayer, layer) for layer in self.layers]
        if caches is not None and any(layer.max_distance is not None and layer.full_tail for layer in layers):
            raise ValueError(
                "caches cannot be extended with both max_distance and full_tail: the stored tail would see less than "
                "it did. Encode the whole history anew, or set full_tail to 0"
            )
        stored: list[KeyValueCache | None] = [None] * len(layers) if caches is None else list(caches)
        encoded = []
        for layer, cache in zip(layers[:-1], stored[:-1], strict=True):
            x_TD, extended = layer.encode(x_TD, sequences, cache)
            encoded.append(extended)
        return [*encoded, layers[-1].store(x_TD, sequences, stored[-1])]
