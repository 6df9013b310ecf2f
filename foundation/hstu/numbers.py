"""Dense features as a model can use them: on one scale, and with bends where a straight line would not do.

Counts, ages and rates come on scales of their own, and what they mean is seldom linear: the first purchase says more
than the tenth. Piecewise-linear encodings are what lets networks read such numbers as well as boosted trees do
(Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning, NeurIPS 2022).

Shape legend: C candidates, F features, K knots, E = F (1 + K).
"""

import torch
from torch import Tensor, nn

KNOTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
"""In standard deviations from the mean; more of them above, where skewed features have their long end."""

HORIZON = 100_000
"""Candidates over which mean and deviation are averaged, exponentially once that many were seen."""

_LOWEST, _HIGHEST = -5.0, 10.0
_LEAST_VARIANCE = 1e-6


def encoded_width(features: int) -> int:
    """E, for F ``features``."""
    return features * (1 + len(KNOTS))


class NumberEncoding(nn.Module):
    """Standardised features and, for every knot, how far each lies above it.

    Mean and deviation are of the candidates trained on so far, this batch included; evaluation leaves them alone, so
    what is said of a window knows nothing of it (law L5), and of a candidate nothing of its neighbours (law L6).

    Attributes (buffers, so part of ``state_dict()``): ``seen``, candidates so far; ``mean_F`` and ``square_F``, float64
    means of the features and of their squares; ``width``, E.
    """

    seen: Tensor
    mean_F: Tensor
    square_F: Tensor
    knot_K: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.width = encoded_width(features)
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean_F", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("square_F", torch.ones(features, dtype=torch.float64))
        self.register_buffer("knot_K", torch.tensor(KNOTS), persistent=False)

    def forward(self, dense_CF: Tensor) -> Tensor:
        """Float32 ``[C, E]`` of float32 ``[C, F]``; before any training, of the features as they are."""
        if self.training and len(dense_CF):
            self._observe(dense_CF.detach().double())
        variance_F = (self.square_F - self.mean_F.square()).clamp(min=_LEAST_VARIANCE)
        standard_CF = (dense_CF - self.mean_F.float()) * variance_F.rsqrt().float()
        standard_CF = standard_CF.clamp(_LOWEST, _HIGHEST)
        above_CFK = (standard_CF.unsqueeze(2) - self.knot_K).relu()
        return torch.cat([standard_CF, 0.5 * above_CFK.flatten(1)], dim=1)

    @torch.no_grad()
    def _observe(self, dense_CF: Tensor) -> None:
        self.seen += len(dense_CF)
        share = (len(dense_CF) / self.seen.clamp(max=HORIZON)).clamp(max=1.0)
        self.mean_F.lerp_(dense_CF.mean(0), share)
        self.square_F.lerp_(dense_CF.square().mean(0), share)
