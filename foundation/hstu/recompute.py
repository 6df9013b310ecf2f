"""Activation recomputation: a layer keeps its input only, and computes the rest again when its gradient is asked for.

Shape legend: T tokens of all sequences, D model width.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hypercast.training.random import get_states, set_states


def recomputed(layer: nn.Module, run: Callable[[Tensor], Tensor], x_TD: Tensor) -> Tensor:
    """``run(x_TD)``, a part of ``layer``'s forward, with the activations in between not kept.

    Dropout inside ``layer`` draws the same masks the second time, and its streams end where one pass leaves them: the
    result and every gradient are those of ``run`` alone, to the bit.
    """
    before = get_states(layer)

    def replayed(given_TD: Tensor) -> Tensor:
        after = get_states(layer)
        first = all(after[name].equal(before[name]) for name in before)
        set_states(layer, before)
        output_TD = run(given_TD)
        if not first:
            set_states(layer, after)
        return output_TD

    # Our streams are not PyTorch's global ones, so there is no global state to preserve.
    return checkpoint(replayed, x_TD, use_reentrant=False, preserve_rng_state=False)
