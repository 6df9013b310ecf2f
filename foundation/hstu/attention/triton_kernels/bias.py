"""Gradients of the two bias tables: a bounded number of programs, each with a table of its own, added up afterwards.

A program walks every ``programs``-th tile of queries, computes the gradient of its scores once more and adds it up by
entry: by time in registers, one bucket of a block after the other; by position along the diagonals of a block. Which
program adds what, and in which order, is fixed: no atomics, and the same bits every time.

Legend: B rows and as many columns of a block, C the ``2 B`` diagonals through it, K buckets (padded).
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from foundation.hstu.attention.triton_kernels.blocks import (
    find_tile,
    key_blocks,
    make_bounds,
    masked_key_block,
    sees,
)
from foundation.hstu.attention.triton_kernels.scores import (
    add_biases,
    bucket_range,
    dot,
    load_rows,
    load_times,
    silu,
    to_bucket,
)


@triton.jit
def _add_to(table_ptr, entry, values, where):
    """``table[entry] += values`` where asked for; entries differ, and nobody else has this table."""
    # Another thread may have written an entry last, or may read it next.
    tl.debug_barrier()
    tl.store(table_ptr + entry, tl.load(table_ptr + entry, mask=where, other=0.0) + values, mask=where)
    tl.debug_barrier()


@triton.jit
def _by_distance(dscores_BB, row, column, bounds, table_ptr, positions, nearest, furthest, BLOCK: tl.constexpr):
    """Adds a block to the table; what belongs to its two ends is returned, for the nearest and for the furthest."""
    history = bounds[0]
    last = positions - 1
    row_B, column_B = row + tl.arange(0, BLOCK), column + tl.arange(0, BLOCK)
    if row + BLOCK - 1 > history:
        # All targets stand at the position `history`: their distances do not follow the diagonals but the columns.
        target = (row_B > history)[:, None] & (row_B[:, None] != column_B[None, :])
        sums_B = tl.sum(tl.where(target, dscores_BB, 0.0), axis=0)
        entry_B = history - column_B
        _add_to(table_ptr, entry_B, sums_B, (entry_B > 0) & (entry_B < last))
        furthest += tl.sum(tl.where(entry_B >= last, sums_B, 0.0))
        dscores_BB = tl.where(target, 0.0, dscores_BB)
    line_C = tl.arange(0, 2 * BLOCK)
    inner_BC = tl.arange(0, BLOCK)[:, None] - line_C[None, :] + BLOCK
    inside = (inner_BC >= 0) & (inner_BC < BLOCK)
    skewed_BC = tl.gather(dscores_BB, tl.minimum(tl.maximum(inner_BC, 0), BLOCK - 1), 1)
    sums_C = tl.sum(tl.where(inside, skewed_BC, 0.0), axis=0)
    entry_C = row - column + line_C - BLOCK
    _add_to(table_ptr, entry_C, sums_C, (entry_C > 0) & (entry_C < last))
    furthest += tl.sum(tl.where(entry_C >= last, sums_C, 0.0))
    nearest += tl.sum(tl.where((entry_C <= 0) & (entry_C < last), sums_C, 0.0))
    return nearest, furthest


@triton.jit
def _by_time(dscores_BB, row_time_B, column_time_B, bucket_starts_ptr, buckets, total_K, BLOCK_K: tl.constexpr):
    """``total_K`` with a block added to it."""
    apart_BB = tl.abs(row_time_B[:, None] - column_time_B[None, :])
    bucket_BB = to_bucket(apart_BB, bucket_starts_ptr, buckets)
    live_BB = dscores_BB != 0.0
    first = tl.min(tl.where(live_BB, bucket_BB, BLOCK_K))
    last = tl.max(tl.where(live_BB, bucket_BB, -1))
    for bucket in range(first, last + 1):
        found = tl.sum(tl.where(bucket_BB == bucket, dscores_BB, 0.0))
        total_K += tl.where(tl.arange(0, BLOCK_K) == bucket, found, 0.0)
    return total_K


@triton.jit(
    do_not_specialize=[
        "items",
        "sequences",
        "heads",
        "positions",
        "buckets",
        "contextual_len",
        "max_distance",
        "full_tail",
    ]
)
def attention_backward_biases(
    grad_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    time_ptr,
    position_parts_ptr,
    time_parts_ptr,
    offsets_ptr,
    num_targets_ptr,
    position_bias_ptr,
    time_bias_ptr,
    bucket_starts_ptr,
    grad_stride,
    grad_head,
    q_stride,
    q_head,
    k_stride,
    k_head,
    v_stride,
    v_head,
    tokens,
    sequences,
    heads,
    positions,
    buckets,
    contextual_len,
    max_distance,
    full_tail,
    scale,
    D: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sums of dscores of this program's tiles and heads: a row of each ``parts``, ``[programs, P or K]``."""
    program = tl.program_id(0)
    bias = (position_bias_ptr, positions, time_bias_ptr, bucket_starts_ptr, buckets)
    nearest = 0.0
    furthest = 0.0
    total_K = tl.zeros([BLOCK_K], tl.float32)
    if position_parts_ptr is not None:
        position_parts_ptr += program.to(tl.int64) * positions
        for first in range(0, positions, 1024):
            entry = first + tl.arange(0, 1024)
            tl.store(position_parts_ptr + entry, tl.zeros([1024], tl.float32), mask=entry < positions)

    items = (tokens // BLOCK + sequences) * heads
    for item in range(program, items, tl.num_programs(0)):
        head = item % heads
        sequence, start, length, tile = find_tile(offsets_ptr, sequences, item // heads, BLOCK)
        row = tile * BLOCK
        index_B = tl.arange(0, BLOCK)
        history, context, tail = make_bounds(length, tl.load(num_targets_ptr + sequence), contextual_len, full_tail)
        bounds = (history, context, tail, max_distance)
        q_base, grad_base = q_ptr + start * q_stride + head * q_head, grad_ptr + start * grad_stride + head * grad_head
        k_base, v_base = k_ptr + start * k_stride + head * k_head, v_ptr + start * v_stride + head * v_head
        time_base = time_ptr
        if time_ptr is not None:
            time_base += start
        q_BD = load_rows(q_base, row, q_stride, length, BLOCK, D)
        grad_BV = load_rows(grad_base, row, grad_stride, length, BLOCK, V)
        row_time_B = load_times(time_base, row, length, BLOCK)
        context_end, near, _full, _full_end, near_end, own, own_end = key_blocks(
            row, tl.minimum(row + BLOCK, length), bounds, 0, length, BLOCK
        )
        blocks = context_end + (near_end - near) + (own_end - own)
        for step in range(0, tl.where(row < length, blocks, 0)):
            column = masked_key_block(step, context_end, near, near_end, near_end, near_end, own) * BLOCK
            k_BD = load_rows(k_base, column, k_stride, length, BLOCK, D)
            v_BV = load_rows(v_base, column, v_stride, length, BLOCK, V)
            column_time_B = load_times(time_base, column, length, BLOCK)
            row_B1, column_1B = (row + index_B)[:, None], (column + index_B)[None, :]
            scores_BB = dot(q_BD, tl.trans(k_BD), PRECISION) * scale
            scores_BB = add_biases(
                scores_BB, row_B1, column_1B, row_time_B[:, None], column_time_B[None, :], bounds, bias
            )
            _weights_BB, slopes_BB = silu(scores_BB, q_BD.dtype)
            dscores_BB = dot(grad_BV, tl.trans(v_BV), PRECISION) * slopes_BB
            dscores_BB = tl.where(sees(row_B1, column_1B, bounds), dscores_BB, 0.0)
            if position_parts_ptr is not None:
                last_column = tl.minimum(column + BLOCK - 1, history)
                if tl.minimum(row, history) - last_column >= positions - 1:
                    furthest += tl.sum(dscores_BB)
                else:
                    nearest, furthest = _by_distance(
                        dscores_BB, row, column, bounds, position_parts_ptr, positions, nearest, furthest, BLOCK
                    )
            if time_parts_ptr is not None:
                first, last = bucket_range(row_time_B, column_time_B, bucket_starts_ptr, buckets)
                if first == last:
                    total_K += tl.where(tl.arange(0, BLOCK_K) == first, tl.sum(dscores_BB), 0.0)
                else:
                    total_K = _by_time(
                        dscores_BB, row_time_B, column_time_B, bucket_starts_ptr, buckets, total_K, BLOCK_K
                    )

    if position_parts_ptr is not None:
        one = tl.arange(0, 1)
        _add_to(position_parts_ptr, one, nearest + tl.zeros([1], tl.float32), one >= 0)
        _add_to(position_parts_ptr + positions - 1, one, furthest + tl.zeros([1], tl.float32), one >= 0)
    if time_parts_ptr is not None:
        bucket_K = tl.arange(0, BLOCK_K)
        tl.store(time_parts_ptr + program.to(tl.int64) * buckets + bucket_K, total_K, mask=bucket_K < buckets)
