"""How much a model computes for one candidate."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def flops_per_candidate(score: Callable[[], object], *, candidates: int) -> float:
    """Floating-point operations of the matrix products in ``score()``, divided by the candidates that it scores.

    A multiplication and an addition count as two; what is done once a request is shared by its candidates. Elementwise
    work and look-ups are not counted.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        score()
    return counter.get_total_flops() / max(candidates, 1)
