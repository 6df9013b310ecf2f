"""Recomputing activations changes memory and time, and nothing else."""

import pytest
import torch
from torch import Tensor

from foundation.hstu.layer import HSTUStack, Sequences
from hypercast.training.random import NamedDropout, get_states, initialise_

WIDTH, TOKENS = 8, 40


def stack(*, recompute: bool, dropout: float) -> HSTUStack:
    made = HSTUStack(
        HSTUStack.Config(layers=3, heads=2, time_buckets=0, recompute=recompute),
        width=WIDTH,
        positions=TOKENS,
        dropouts=[NamedDropout(dropout, seed=0, name=f"layer{index}") for index in range(3)],
    )
    initialise_(made, 1)
    return made


def sequences() -> Sequences:
    return Sequences(
        offsets=torch.tensor([0, 25, TOKENS]),
        num_targets=torch.tensor([3, 0]),
        contextual_len=1,
        timestamps=torch.arange(TOKENS),
        max_seq_len=30,
    )


def trained(model: HSTUStack, steps: int) -> list[Tensor]:
    """Outputs and all gradients of a few steps, and where the dropout streams end."""
    seen = []
    for step in range(steps):
        x_TD = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(step)).requires_grad_()
        output_TD = model(x_TD, sequences())
        wanted = [x_TD, *(parameter for parameter in model.parameters() if parameter.requires_grad)]
        seen += [output_TD, *torch.autograd.grad(output_TD.square().sum(), wanted, allow_unused=True)]
    return [each for each in seen if each is not None] + list(get_states(model).values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_same_bits(dropout: float) -> None:
    kept = trained(stack(recompute=False, dropout=dropout), 3)
    recomputed = trained(stack(recompute=True, dropout=dropout), 3)
    assert len(kept) == len(recomputed)
    assert all(a.equal(b) for a, b in zip(kept, recomputed, strict=True))


def stored_bytes(model: HSTUStack) -> int:
    """What autograd keeps for backward."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x_TD = torch.randn(TOKENS, WIDTH).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(x_TD, sequences())
    del output
    return sum(kept.values())


def test_less_is_kept() -> None:
    parameters = sum(parameter.nbytes for parameter in stack(recompute=True, dropout=0.0).parameters())
    kept = stored_bytes(stack(recompute=False, dropout=0.1)) - parameters
    recomputed = stored_bytes(stack(recompute=True, dropout=0.1)) - parameters
    assert recomputed < kept / 3
