"""The HSTU layer is its three equations, and a batch of sequences is its sequences one by one."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.hstu.attention.semantics import attention_mask, sequence_positions, time_buckets
from foundation.hstu.layer import HSTULayer, HSTUStack, Sequences
from hypercast.training.random import initialise_

WIDTH, HEADS, POSITIONS, BUCKETS, CONTEXT, DIVISOR = 6, 2, 12, 20, 2, 9


def layer() -> HSTULayer:
    made = HSTULayer(width=WIDTH, heads=HEADS, positions=POSITIONS, time_buckets=BUCKETS, dropout=nn.Identity())
    initialise_(made, 3)
    return made.double()


def sequences(lengths: list[int], targets: list[int]) -> Sequences:
    return Sequences(
        offsets=torch.tensor([0, *lengths]).cumsum(0),
        num_targets=torch.tensor(targets),
        contextual_len=CONTEXT,
        timestamps=torch.arange(sum(lengths)) ** 3 * 1_000_000,
        max_seq_len=DIVISOR,
    )


def tokens(count: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def by_the_equations(module: HSTULayer, x_nD: Tensor, given: Sequences) -> Tensor:
    """One sequence: equations 1 to 3 of arXiv 2402.17152, one head after the other."""
    length, targets = len(x_nD), int(given.num_targets[0])
    projected = F.silu(F.linear(module.norm_input(x_nD), module.project.weight, module.project.bias))
    u_nD, v_nD, q_nD, k_nD = (projected[:, part * WIDTH : (part + 1) * WIDTH] for part in range(4))
    position = sequence_positions(length, targets)
    bias = module.position_bias[(position[:, None] - position[None, :]).clamp(min=0)]
    bias = bias + module.time_bias[time_buckets(given.timestamps, given.timestamps, count=BUCKETS)]
    mask = attention_mask(length, targets, CONTEXT)
    size = WIDTH // HEADS
    attended = []
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        scores = F.silu(q_nD[:, own] @ k_nD[:, own].T / size**0.5 + bias) / DIVISOR
        attended.append((scores * mask) @ v_nD[:, own])
    gated = module.norm_output(torch.cat(attended, dim=1)) * u_nD
    return F.linear(gated, module.output.weight, module.output.bias) + x_nD


def test_equations() -> None:
    module, given, x = layer(), sequences([7], [2]), tokens(7)
    assert torch.allclose(module(x, given), by_the_equations(module, x, given), rtol=1e-12, atol=1e-12)


def test_a_batch_is_its_sequences_one_by_one() -> None:
    module, lengths, targets = layer(), [5, 2, 8], [1, 0, 3]
    given, x = sequences(lengths, targets), tokens(15)
    parts = []
    for start, length, count in zip([0, 5, 7], lengths, targets, strict=True):
        one = Sequences(
            offsets=torch.tensor([0, length]),
            num_targets=torch.tensor([count]),
            contextual_len=CONTEXT,
            timestamps=given.timestamps[start : start + length],
            max_seq_len=DIVISOR,
        )
        parts.append(module(x[start : start + length], one))
    assert torch.allclose(module(x, given), torch.cat(parts), rtol=1e-12, atol=1e-12)


def test_every_parameter_learns() -> None:
    module, given = layer(), sequences([7, 4], [2, 1])
    module(tokens(11), given).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_dropout_leaves_the_residual() -> None:
    module = HSTULayer(width=WIDTH, heads=HEADS, positions=POSITIONS, time_buckets=BUCKETS, dropout=nn.Dropout(1.0))
    initialise_(module, 3)
    module, x = module.double().train(), tokens(5)
    assert module(x, sequences([5], [1])).equal(x + module.output.bias)


@pytest.mark.parametrize("depth", [1, 3])
def test_stack_is_its_layers_and_a_norm(depth: int) -> None:
    stack = HSTUStack(
        HSTUStack.Config(layers=depth, heads=HEADS, time_buckets=BUCKETS),
        width=WIDTH,
        positions=POSITIONS,
        dropouts=[nn.Identity() for _ in range(depth)],
    )
    initialise_(stack, 1)
    stack, given, x = stack.double(), sequences([6], [2]), tokens(6)
    expected = x
    for module in stack.layers:
        expected = module(expected, given)
    assert stack(x, given).equal(stack.norm(expected))
    assert len(stack.layers) == depth


def test_stack_lets_nothing_through_from_the_future_or_another_target() -> None:
    stack = HSTUStack(
        HSTUStack.Config(layers=3, heads=HEADS, time_buckets=BUCKETS),
        width=WIDTH,
        positions=POSITIONS,
        dropouts=[nn.Identity() for _ in range(3)],
    )
    initialise_(stack, 1)
    stack, given, x = stack.double(), sequences([8], [3]), tokens(8)
    before = stack(x, given)
    for token in range(CONTEXT, 8):
        moved = x.clone()
        moved[token] += 1.0
        after = stack(moved, given)
        untouched = list(range(token)) if token < 5 else [row for row in range(8) if row != token]
        assert after[untouched].equal(before[untouched])
        assert not after[token].equal(before[token])
