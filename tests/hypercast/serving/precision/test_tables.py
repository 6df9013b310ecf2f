"""Compact tables say what the float32 table says, up to the steps of each row."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.hstu.embedding import FeatureEmbedding
from foundation.hstu.vocabulary import Slots
from hypercast.serving.precision.tables import CompactTable, Quantised, quantised, unfused_width

names = pytest.mark.parametrize("name", ["int8", "int4"])
STEPS = {"int8": 255, "int4": 15}


def slots_of(bags: Sequence[Sequence[int]], evicted: Sequence[int] = ()) -> Slots:
    return Slots(
        row_I=torch.tensor([row for bag in bags for row in bag], dtype=torch.int64),
        offsets=torch.from_numpy(np.cumsum([0, *map(len, bags)])),
        evicted=torch.tensor(evicted, dtype=torch.int64),
    )


def table_of(rows: int, width: int, seed: int = 0) -> FeatureEmbedding:
    table = FeatureEmbedding(rows=rows, width=width)
    table.weight.data.copy_(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)))
    return table


@names
@given(
    bags=st.lists(st.lists(st.integers(0, 19), max_size=4), min_size=1, max_size=12), width=st.sampled_from([4, 16, 64])
)
def test_a_bag_is_off_by_half_a_step_a_row_at_most(name: Quantised, bags: list[list[int]], width: int) -> None:
    table = table_of(20, width)
    with torch.no_grad():
        expected_ND = table(slots_of(bags))
        found_ND = quantised(table.weight, name)(slots_of(bags))
    span_R = table.weight.detach().amax(1) - table.weight.detach().amin(1)
    # Scale and offset of int4 rows are float16: a little beside the half step.
    slack = 0.5 / STEPS[name] + (0.004 if name == "int4" else 1e-5)
    for bag, found_D, expected_D in zip(bags, found_ND, expected_ND, strict=True):
        assert float((found_D - expected_D).abs().max()) <= slack * float(span_R[bag].sum()) + 1e-5


@names
def test_sizes_are_as_promised(name: Quantised) -> None:
    compact = quantised(table_of(50, 64).weight, name)
    assert (compact.rows, compact.width) == (50, 64)
    assert compact.nbytes == 50 * {"int8": 72, "int4": 36}[name]
    assert unfused_width(compact.tensors()["rows"].shape[1], name) == 64


@names
def test_rows_that_were_never_learned_stay_nothing(name: Quantised) -> None:
    compact = quantised(FeatureEmbedding(rows=3, width=8).weight, name)
    assert torch.equal(compact(slots_of([[0, 1], [2]])), torch.zeros(2, 8))


def test_a_table_of_many_parts_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = table_of(70_000, 4).weight
    whole = quantised(weight, "int8").tensors()["rows"]
    assert torch.equal(whole[65_530:65_545], quantised(weight[65_530:65_545], "int8").tensors()["rows"])


def test_rows_that_change_hands_are_refused() -> None:
    compact = CompactTable(quantised(table_of(5, 4).weight, "int8").tensors()["rows"], name="int8")
    with pytest.raises(RuntimeError, match="eval"):
        compact(slots_of([[0]], evicted=[1]))
