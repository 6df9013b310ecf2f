"""The Triton kernels in Triton's interpreter: test_triton.py runs this file, in a process where the interpreter is on.

Cases are small, since the interpreter takes milliseconds for what a GPU does in nanoseconds, but longer than its blocks
of 16 and 32, so that every kind of block is met: of context, near and far, whole and masked, of targets alone.
"""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.hstu.attention import dispatch, triton_backend
from foundation.hstu.attention.semantics import attention_mask, time_thresholds
from foundation.hstu.attention.triton_kernels.blocks import (
    find_tile,
    key_blocks,
    make_bounds,
    masked_key_block,
    masked_query_block,
    query_blocks,
)
from tests.foundation.hstu.attention.cases import (
    Case,
    assert_close,
    assert_results_close,
    cases,
    largest,
    make_case,
    results,
    sizes_of_results,
    split_rows,
    truth,
)

SINGLE = 2e-6
"""Error allowed in float32, as a share of the size of results: sums of tens of numbers."""

CASES = {
    "plain": make_case([(34, 0), (0, 0), (1, 0)], context=0, heads=1, positions=None, buckets=None),
    "targets over blocks": make_case([(20, 18), (0, 2), (5, 0)], context=2, heads=1, width=5, value_width=17),
    "distance": make_case([(50, 3)], context=18, heads=1, max_distance=6, positions=60, buckets=None),
    "distance and tail": make_case([(70, 4)], context=0, heads=1, max_distance=9, full_tail=5, positions=4),
    "nothing but itself": make_case([(33, 2)], context=0, heads=1, max_distance=0, positions=1, buckets=1),
    "context throughout": make_case([(20, 3)], context=40, heads=2, width=1, positions=None, scale=0.7),
}
LOW = {"targets over blocks", "distance and tail"}


@pytest.mark.parametrize("name", CASES)
def test_output_and_every_gradient(name: str) -> None:
    assert_results_close(CASES[name].cast(torch.float32), "triton", relative=SINGLE)


@pytest.mark.parametrize("name", sorted(LOW))
def test_bfloat16_errs_no_more_than_its_reference(name: str) -> None:
    low = CASES[name].cast(torch.bfloat16, tables=torch.float32)
    actual, plain, exact, sizes = results(low, "triton"), results(low, "reference"), truth(low), sizes_of_results(low)
    for part, value in exact.items():
        mine, theirs = largest(actual[part].double() - value), largest(plain[part].double() - value)
        assert actual[part].dtype == plain[part].dtype
        assert mine <= (2 if part == "output" else 5) * theirs + 2**-9 * sizes[part], part


@pytest.mark.parametrize("name", ["targets over blocks", "distance and tail"])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_cached_is_the_last_rows_of_whole_sequences(name: str, share: float) -> None:
    made = CASES[name].cast(torch.float32)
    stored = [int(share * before) for before, _ in made.sequences]
    expected = truth(made)["output"][split_rows(made.sizes, stored)[1]]
    assert_close(made.attend_cached(stored, "triton"), expected, relative=SINGLE, size=sizes_of_results(made)["output"])


def test_the_same_bits_twice() -> None:
    made = CASES["targets over blocks"].cast(torch.float32)
    first, second = results(made, "triton"), results(made, "triton")
    assert all(first[name].equal(second[name]) for name in first)


def test_slices_of_a_wider_tensor_are_read_in_place() -> None:
    made = make_case([(20, 2)], heads=2, width=16, dtype=torch.float32)
    wide = torch.cat([made.q, made.k, made.v], dim=2).detach()
    q, k, v = wide.split(16, dim=2)
    actual = dispatch.hstu_attention(q, k, v, made.offsets, **made.options(), backend="triton")
    assert not q.is_contiguous() and actual.equal(made.attend("triton"))


def test_buckets_of_time_agree_to_the_bit() -> None:
    """Times between two tokens on both sides of each threshold: a score of one bucket or the next, told by its bias."""
    exact = time_thresholds(64).double().numpy()[:40]
    edges = np.concatenate([np.nextafter(exact.astype(np.float32), way) for way in (np.float32(0), np.float32(np.inf))])
    apart = torch.from_numpy(np.unique(np.concatenate([[0.0], edges, exact])).astype(np.int64))
    tokens = len(apart)
    nothing = torch.zeros(tokens, 1, 1)
    options = {
        "max_seq_len": 1,
        "time_bias": torch.arange(64, dtype=torch.float32),
        "timestamps": apart,
        "offsets": torch.tensor([0, tokens]),
    }
    v = (torch.arange(tokens) == 0).float()[:, None, None]  # the first token alone, at time 0, is heard
    expected = dispatch.hstu_attention(nothing, nothing, v, **options, backend="reference")
    assert len(expected.unique()) == 41
    actual = dispatch.hstu_attention(nothing, nothing, v, **options, backend="triton")
    assert_close(actual, expected, relative=1e-6)


@settings(max_examples=5, deadline=None)
@given(cases(longest=24))
def test_random_cases(made: Case) -> None:
    assert_results_close(made.cast(torch.float32), "triton", relative=SINGLE)


WHOLE = tl.constexpr(100)


@triton.jit
def _visit_keys(
    visits, length, targets_ptr, context, distance, tail, first, last, blocks, M: tl.constexpr, N: tl.constexpr
):
    row = tl.program_id(0) * M
    history, context, reaching = make_bounds(length, tl.load(targets_ptr), context, tail)
    bounds = (history, context, reaching, distance)
    c, near, full, full_end, near_end, own, own_end = key_blocks(
        row, tl.minimum(row + M, length), bounds, first, last, N
    )
    visits += tl.program_id(0) * blocks
    for step in range(0, c + (full - near) + (near_end - full_end) + (own_end - own)):
        block = masked_key_block(step, c, near, full, full_end, near_end, own)
        tl.store(visits + block, tl.load(visits + block) + 1)
    for block in range(full, full_end):
        tl.store(visits + block, tl.load(visits + block) + WHOLE)


@triton.jit
def _visit_queries(visits, length, targets_ptr, context, distance, tail, blocks, M: tl.constexpr, N: tl.constexpr):
    column = tl.program_id(0) * N
    history, context, reaching = make_bounds(length, tl.load(targets_ptr), context, tail)
    bounds = (history, context, reaching, distance)
    near, full, full_end, near_end, late, late_full, end = query_blocks(
        column, tl.minimum(column + N, length), length, bounds, M
    )
    visits += tl.program_id(0) * blocks
    for step in range(0, (full - near) + (near_end - full_end) + (late_full - late)):
        block = masked_query_block(step, near, full, full_end, near_end, late)
        tl.store(visits + block, tl.load(visits + block) + 1)
    for block in range(full, full_end):
        tl.store(visits + block, tl.load(visits + block) + WHOLE)
    for block in range(late_full, end):
        tl.store(visits + block, tl.load(visits + block) + WHOLE)


@triton.jit
def _own_tiles(owned, offsets, sequences, most, BLOCK: tl.constexpr):
    sequence, _, length, tile = find_tile(offsets, sequences, tl.program_id(0), BLOCK)
    if tile * BLOCK < length:
        tl.store(owned + sequence * most + tile, tl.load(owned + sequence * most + tile) + 1)


def assert_visits(visits: Tensor, seen: Tensor, rows: int, columns: int) -> None:
    """Each block in which a pair is seen is visited once, without a mask only where all pairs are; few others are."""
    assert set(visits.unique().tolist()) <= {0, 1, WHOLE.value}
    idle = 0
    for (tile, block), visit in np.ndenumerate(visits.numpy()):
        pairs = seen[tile * rows : (tile + 1) * rows, block * columns : (block + 1) * columns]
        assert visit or not pairs.any(), f"missed: {tile}, {block}"
        assert visit != WHOLE.value or pairs.all(), f"needs its mask: {tile}, {block}"
        idle += bool(visit) and not pairs.any()
    assert idle <= len(visits), f"{idle} idle blocks of {visits.numel()}"


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_blocks_hold_what_is_seen_and_little_else(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 40))
    targets = data.draw(st.one_of(st.just(0), st.integers(0, length)))
    context = data.draw(st.one_of(st.just(0), st.integers(0, length + 2)))
    distance = data.draw(st.one_of(st.none(), st.integers(0, length)))
    tail = data.draw(st.one_of(st.just(0), st.integers(0, length)))
    rows, columns = data.draw(st.sampled_from([(4, 4), (8, 4), (4, 8)]))
    arguments = (length, torch.tensor([targets]), context, distance, tail)
    seen = attention_mask(length, targets, context, distance, tail)

    stored = data.draw(st.integers(0, length - targets))
    for first, last in ((0, length), (0, stored), (stored, length)):
        visits = torch.zeros(triton.cdiv(length, rows), triton.cdiv(last - first, columns), dtype=torch.int32)
        _visit_keys[(len(visits),)](visits, *arguments, first, last, visits.shape[1], M=rows, N=columns)
        assert_visits(visits, seen[:, first:last], rows, columns)

    visits = torch.zeros(triton.cdiv(length, columns), triton.cdiv(length, rows), dtype=torch.int32)
    _visit_queries[(len(visits),)](visits, *arguments, visits.shape[1], M=rows, N=columns)
    assert_visits(visits.T, seen, rows, columns)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=9), st.sampled_from([4, 8]))
def test_every_tile_has_one_slot(lengths: list[int], block: int) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    owned = torch.zeros(len(lengths), 6, dtype=torch.int32)
    _own_tiles[(sum(lengths) // block + len(lengths),)](owned, offsets, len(lengths), 6, BLOCK=block)
    for count, length in zip(owned.tolist(), lengths, strict=True):
        tiles = triton.cdiv(length, block)
        assert count == [1] * tiles + [0] * (6 - tiles)


def test_widths_that_do_not_fit_are_refused() -> None:
    made = make_case([(3, 0)], width=triton_backend.WIDEST + 1, dtype=torch.float32)
    with pytest.raises(ValueError, match="widths up to 128 a head; q has 129"):
        made.attend("triton")


def test_every_case_has_more_rows_than_a_block() -> None:
    def longest(made: Case) -> int:
        return max(made.sizes)

    assert min(longest(made) for made in CASES.values()) > 16
