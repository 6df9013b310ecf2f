"""Stochastic length (arXiv 2402.17152, section 3): training on a random part of each long history.

With base length N and ``1 < alpha <= 2``, a history of n tokens

- is kept whole with probability ``min(1, N^alpha / n^2)``, which is 1 for ``n <= N^(alpha / 2)``;
- otherwise keeps ``floor(N^(alpha / 2))`` of its tokens, drawn without replacement, in their order.

Attention over a history then costs at most ``2 N^alpha`` instead of ``N^2`` in expectation. Tokens are drawn

- ``uniform``: each alike;
- ``recency``: token i by weight ``w_i = 1 - f_i / sum_j f_j``, where ``f_i = t_newest - t_i`` is the time from it to
  the history's newest token: the authors' feature-weighted choice. All weights are equal where all times are.

Shape legend: B sequences, L tokens of all histories, K of them kept.
"""

import math
from typing import Literal

import pydantic
import torch
from torch import Tensor

from hypercast.training.random import NamedStream
from streaming.batch import History
from streaming.config import Config as BaseConfig

Choice = Literal["recency", "uniform"]


def subsampled_length(*, base_length: int, alpha: float) -> int:
    """How many tokens a history that is not kept whole keeps: ``floor(N^(alpha / 2))``."""
    return math.floor(base_length ** (alpha / 2))


def probability_whole(length: int, *, base_length: int, alpha: float) -> float:
    """How likely a history of ``length`` tokens is kept whole: ``min(1, N^alpha / n^2)``."""
    return min(1.0, base_length**alpha / max(length, 1) ** 2)


def kept_tokens(
    offsets: Tensor, timestamps: Tensor, *, base_length: int, alpha: float, choice: Choice, stream: torch.Generator
) -> Tensor:
    """Which tokens of jagged histories to train on.

    Args:
        offsets: int64 ``[B + 1]``.
        timestamps: int64 microseconds ``[L]``, read for ``choice="recency"``.
        base_length: N.
        alpha: in (1, 2].
        choice: how tokens are drawn.
        stream: on the device of ``timestamps``; every call draws B + L numbers from it.

    Returns:
        int64 ``[K]``, ascending.
    """
    device, lengths = timestamps.device, offsets.diff()
    coin_B = torch.rand(len(lengths), dtype=torch.float64, generator=stream, device=device)
    draw_L = torch.rand(len(timestamps), dtype=torch.float64, generator=stream, device=device)
    whole_B = coin_B * lengths.double().square() < base_length**alpha
    kept_B = torch.where(whole_B, lengths, subsampled_length(base_length=base_length, alpha=alpha)).minimum(lengths)
    owner_L = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
    weight_L = recency_weights(offsets, timestamps) if choice == "recency" else torch.ones_like(draw_L)
    # The first to ring of exponential clocks with rates w are draws without replacement with weights w
    # (Efraimidis & Spirakis 2006): one sort instead of a loop over draws.
    order_L = (-torch.log1p(-draw_L) / weight_L).argsort(stable=True)
    order_L = order_L[owner_L[order_L].argsort(stable=True)]
    rank_L = torch.arange(len(order_L), device=device) - offsets[owner_L]
    return order_L[rank_L < kept_B[owner_L]].sort().values


def recency_weights(offsets: Tensor, timestamps: Tensor) -> Tensor:
    """``w_i = 1 - f_i / sum_j f_j``, ``f_i`` being the time from token i to its history's newest: float64 ``[L]``.

    Args:
        offsets: int64 ``[B + 1]``.
        timestamps: int64 ``[L]``, ascending within each history.
    """
    lengths = offsets.diff()
    owner_L = torch.arange(len(lengths), device=offsets.device).repeat_interleave(lengths)
    elapsed_L = (timestamps[offsets[1:][owner_L] - 1] - timestamps).double()
    total_B = elapsed_L.new_zeros(len(lengths)).index_add(0, owner_L, elapsed_L)
    return 1.0 - elapsed_L / total_B.clamp(min=1.0)[owner_L]


class StochasticLength(NamedStream):
    """Drops tokens of histories while training; the identity in evaluation mode.

    The n-th draw depends on ``(seed, name, n)`` only, and n is saved with the run's other streams.
    """

    class Config(BaseConfig):
        """Attributes:

        alpha: 1 < alpha <= 2; the smaller, the more is dropped (2 drops nothing); null for off.
        choice: which tokens are kept: ``recency`` prefers newer ones, ``uniform`` has no preference.
        """

        alpha: float | None = None
        choice: Choice = "recency"

        @pydantic.field_validator("alpha")
        @classmethod
        def _in_range(cls, alpha: float | None) -> float | None:
            if alpha is not None and not 1.0 < alpha <= 2.0:
                raise ValueError(
                    f"stochastic length: alpha is {alpha}; allowed are 1 < alpha <= 2, or null for off. Example: 1.7"
                )
            return alpha

        def build(self, *, base_length: int, seed: int, name: str) -> "StochasticLength | None":
            """None where ``alpha`` is null."""
            if self.alpha is None:
                return None
            return StochasticLength(alpha=self.alpha, choice=self.choice, base_length=base_length, seed=seed, name=name)

    def __init__(self, *, alpha: float, choice: Choice, base_length: int, seed: int, name: str) -> None:
        super().__init__("stochastic_length", seed=seed, name=name)
        self.alpha = alpha
        self.choice = choice
        self.base_length = base_length

    def forward(self, history: History) -> History:
        """The part of ``history`` to train on."""
        if not self.training:
            return history
        kept_K = kept_tokens(
            history.offsets,
            history.time_L,
            base_length=self.base_length,
            alpha=self.alpha,
            choice=self.choice,
            stream=self.next_stream(history.time_L.device),
        )
        return History(
            item_L=history.item_L[kept_K],
            surface_L=history.surface_L[kept_K],
            action_L=history.action_L[kept_K],
            time_L=history.time_L[kept_K],
            offsets=torch.searchsorted(kept_K, history.offsets),
        )

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, choice={self.choice!r}, base_length={self.base_length}, name={self.name!r}"
