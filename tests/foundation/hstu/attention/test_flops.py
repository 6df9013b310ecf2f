"""Counted operations are those of the pairs of tokens that the mask lets through."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from foundation.hstu.attention.dispatch import hstu_attention
from foundation.hstu.attention.flops import seen_pairs
from foundation.hstu.attention.semantics import attention_mask


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=3),
    st.integers(0, 4),
    st.none() | st.integers(0, 9),
    st.integers(0, 5),
)
def test_pairs_are_those_of_the_mask(
    sequences: list[tuple[int, int]], context: int, max_distance: int | None, full_tail: int
) -> None:
    lengths, targets = [past + few for past, few in sequences], [few for _, few in sequences]
    masks = [attention_mask(n, m, context, max_distance, full_tail) for n, m in zip(lengths, targets, strict=True)]
    counted = seen_pairs(torch.tensor(lengths), torch.tensor(targets), context, max_distance, full_tail)
    assert counted == sum(int(mask.sum()) for mask in masks)


def test_forward_and_backward_are_counted() -> None:
    q, k = (torch.randn(5, 2, 4, requires_grad=True) for _ in range(2))
    v = torch.randn(5, 2, 6, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output = hstu_attention(q, k, v, torch.tensor([0, 2, 5]), max_seq_len=5, backend="blockwise")
    pairs = 3 + 6
    assert counter.get_total_flops() == 2 * pairs * 2 * (4 + 6)
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 5 * pairs * 2 * (4 + 6)
