"""Tiles of the blockwise path: every visible pair once, nothing of the size of a whole sequence's scores."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foundation.hstu.attention import blockwise
from foundation.hstu.attention.semantics import attention_mask
from tests.foundation.hstu.attention.cases import EDGES, make_case, results

RULES = st.fixed_dictionaries(
    {
        "contextual_len": st.sampled_from([0, 3, 256, 300]),
        "max_distance": st.none() | st.integers(0, 300),
        "full_tail": st.sampled_from([0, 1, 100, 257]),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EDGES), st.sampled_from([0, 1, 20, 270]), RULES, st.data())
def test_every_pair_that_sees_one_another_is_in_one_tile(
    before: int, targets: int, rule: dict[str, Any], data: st.DataObject
) -> None:
    length, first = before + targets, data.draw(st.integers(0, before))
    covered = torch.zeros(length, length, dtype=torch.int64)
    mask = attention_mask(length, targets, **rule)
    for rows, columns in blockwise.tiles_of(first, length, targets, **rule):
        assert max(rows.stop - rows.start, columns.stop - columns.start) <= blockwise.BLOCK
        assert mask[rows, columns].any()
        covered[rows, columns] += 1
    assert not covered[:first].any()
    assert (covered <= 1).all()
    assert (covered[first:] == 1)[mask[first:]].all()


def test_a_limited_distance_costs_in_proportion_to_the_length() -> None:
    def count(length: int) -> int:
        return len(list(blockwise.tiles_of(0, length, 0, contextual_len=5, max_distance=200, full_tail=0)))

    assert count(16 * 1024) <= 2.1 * count(8 * 1024)


class Largest(TorchDispatchMode):
    """Records how many elements the largest tensor made while it is on has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run and look."""
        made = func(*args, **(kwargs or {}))
        sizes = [value.numel() for value in tree_leaves(made) if isinstance(value, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return made


@pytest.mark.parametrize("length", [1000, 2000])
def test_nothing_grows_with_the_square_of_a_length(length: int) -> None:
    made = make_case([(length - 300, 300)], heads=1, width=16, positions=100, buckets=64, dtype=torch.float32)
    values = [made.q, made.k, made.v, made.offsets, torch.tensor(made.targets), made.position_bias, made.time_bias]
    values = [value.detach() for value in values]
    rest = (made.time, 11, 2, None, 0, 0.25)
    with Largest() as seen:
        blockwise.forward(*values, *rest)
        blockwise.backward(torch.ones_like(made.v), *values, *rest)
    assert seen.elements <= max(blockwise.BLOCK**2, length * 16)
    with Largest() as seen:
        results(made, "reference")
    assert seen.elements >= length**2
