"""What other logits cost, without labels: how far the predictions are from those that they stand for.

Shape legend: C candidates, T tasks.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Sums over predictions: ``extra`` log loss of the other logits, and ``loss`` of the reference's own, both in nats
    and both as expected where the reference is right.
    """

    extra: float
    loss: float

    @property
    def ne_cost_pct(self) -> float:
        """Expected relative change of NE, in %. NE is log loss over a constant, so its relative change is that of the
        log loss.
        """
        return 100.0 * self.extra / max(self.loss, 1e-30)


def divergence(reference_CT: Tensor, other_CT: Tensor) -> Divergence:
    """Of logits ``[C, T]`` that stand for ``reference_CT``.

    Where labels are drawn with the reference's probabilities p, predicting q costs ``KL(p || q)`` more on average. It
    is never negative; what labels measure scatters around it to both sides.
    """
    p_CT, q_CT = reference_CT.double(), other_CT.double()
    own_CT = _cross_entropy(p_CT, p_CT)
    # Rounding can leave a difference of equals just below zero.
    extra_CT = (_cross_entropy(p_CT, q_CT) - own_CT).clamp(min=0.0)
    return Divergence(extra=float(extra_CT.sum()), loss=float(own_CT.sum()))


def _cross_entropy(p_CT: Tensor, q_CT: Tensor) -> Tensor:
    """Expected log loss of logits q where labels follow logits p."""
    return F.softplus(q_CT) - p_CT.sigmoid() * q_CT
