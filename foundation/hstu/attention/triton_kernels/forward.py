"""Forward: a tile of queries against all blocks of keys that it sees, from one source or from two.

Legend: M rows of a tile, N columns of a block, D width of queries and keys, V width of values, both padded.
``keys`` is ``(k_ptr, v_ptr, time_ptr, k_stride, v_stride, first, last)``: where the tokens ``first:last`` of a sequence
are; ``bounds`` is what the mask asks of the sequence, ``bias`` the tables (``blocks`` and ``scores`` unpack them).
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from foundation.hstu.attention.triton_kernels.blocks import (
    find_tile,
    key_blocks,
    last_tile_first,
    make_bounds,
    masked_key_block,
    sees,
)
from foundation.hstu.attention.triton_kernels.scores import (
    add_biases,
    dot,
    load_rows,
    load_times,
    silu,
    store_rows,
)


@triton.jit
def _add_block(
    out_MV,
    q_MD,
    row_M,
    time_M,
    block,
    keys,
    bounds,
    bias,
    scale,
    D: tl.constexpr,
    V: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    k_ptr, v_ptr, time_ptr, k_stride, v_stride, first, last = keys
    begin, count = block * BLOCK_N, last - first
    k_ND = load_rows(k_ptr, begin, k_stride, count, BLOCK_N, D)
    v_NV = load_rows(v_ptr, begin, v_stride, count, BLOCK_N, V)
    time_N = load_times(time_ptr, begin, count, BLOCK_N)
    row, column = row_M[:, None], (first + begin + tl.arange(0, BLOCK_N))[None, :]
    scores_MN = dot(q_MD, tl.trans(k_ND), PRECISION) * scale
    scores_MN = add_biases(scores_MN, row, column, time_M[:, None], time_N[None, :], bounds, bias)
    weights_MN, _slopes_MN = silu(scores_MN, q_MD.dtype)
    if MASKED:
        weights_MN = tl.where(sees(row, column, bounds), weights_MN, 0.0)
    return out_MV + dot(weights_MN.to(v_NV.dtype), v_NV, PRECISION)


@triton.jit
def _add_keys(
    out_MV,
    q_MD,
    row_M,
    time_M,
    row,
    row_end,
    keys,
    bounds,
    bias,
    scale,
    D: tl.constexpr,
    V: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    context_end, near, full, full_end, near_end, own, own_end = key_blocks(
        row, row_end, bounds, keys[5], keys[6], BLOCK_N
    )
    masked = context_end + (full - near) + (near_end - full_end) + (own_end - own)
    for step in range(0, masked):
        block = masked_key_block(step, context_end, near, full, full_end, near_end, own)
        out_MV = _add_block(
            out_MV, q_MD, row_M, time_M, block, keys, bounds, bias, scale,
            D, V, BLOCK_N, PRECISION, True,
        )  # fmt: skip
    for block in range(full, full_end):
        out_MV = _add_block(
            out_MV, q_MD, row_M, time_M, block, keys, bounds, bias, scale,
            D, V, BLOCK_N, PRECISION, False,
        )  # fmt: skip
    return out_MV


@triton.jit(do_not_specialize=["sequences", "positions", "buckets", "contextual_len", "max_distance", "full_tail"])
def attention_forward(
    q_ptr,
    k_ptr,
    v_ptr,
    time_ptr,
    k_cache_ptr,
    v_cache_ptr,
    cache_time_ptr,
    out_ptr,
    offsets_ptr,
    cache_offsets_ptr,
    num_targets_ptr,
    position_bias_ptr,
    time_bias_ptr,
    bucket_starts_ptr,
    q_stride,
    q_head,
    k_stride,
    k_head,
    v_stride,
    v_head,
    k_cache_stride,
    k_cache_head,
    v_cache_stride,
    v_cache_head,
    out_stride,
    out_head,
    sequences,
    positions,
    buckets,
    contextual_len,
    max_distance,
    full_tail,
    scale,
    share,
    D: tl.constexpr,
    V: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``out = share * (SiLU(scale q k^T + biases) * mask) v``; with a cache, its tokens come before those of ``k``."""
    sequence, start, new, tile = find_tile(offsets_ptr, sequences, tl.program_id(0), BLOCK_M)
    tile = last_tile_first(tile, new, BLOCK_M)
    if tile * BLOCK_M >= new:
        return
    head = tl.program_id(1)
    stored = new * 0
    if k_cache_ptr is not None:
        cache_start = tl.load(cache_offsets_ptr + sequence)
        stored = (tl.load(cache_offsets_ptr + sequence + 1) - cache_start).to(tl.int32)
    length = stored + new
    history, context, tail = make_bounds(length, tl.load(num_targets_ptr + sequence), contextual_len, full_tail)
    bounds = (history, context, tail, max_distance)
    bias = (position_bias_ptr, positions, time_bias_ptr, bucket_starts_ptr, buckets)

    begin = tile * BLOCK_M
    row_M = stored + begin + tl.arange(0, BLOCK_M)
    q_MD = load_rows(q_ptr + start * q_stride + head * q_head, begin, q_stride, new, BLOCK_M, D)
    if time_ptr is not None:
        time_ptr += start
    time_M = load_times(time_ptr, begin, new, BLOCK_M)
    row_end = tl.minimum(stored + begin + BLOCK_M, length)
    out_MV = tl.zeros([BLOCK_M, V], tl.float32)
    if k_cache_ptr is not None:
        if cache_time_ptr is not None:
            cache_time_ptr += cache_start
        keys = (
            k_cache_ptr + cache_start * k_cache_stride + head * k_cache_head,
            v_cache_ptr + cache_start * v_cache_stride + head * v_cache_head,
            cache_time_ptr,
            k_cache_stride,
            v_cache_stride,
            0,
            stored,
        )
        out_MV = _add_keys(
            out_MV, q_MD, row_M, time_M, stored + begin, row_end, keys, bounds, bias, scale,
            D, V, BLOCK_N, PRECISION,
        )  # fmt: skip
    keys = (
        k_ptr + start * k_stride + head * k_head,
        v_ptr + start * v_stride + head * v_head,
        time_ptr,
        k_stride,
        v_stride,
        stored,
        length,
    )
    out_MV = _add_keys(
        out_MV, q_MD, row_M, time_M, stored + begin, row_end, keys, bounds, bias, scale,
        D, V, BLOCK_N, PRECISION,
    )  # fmt: skip
    out_ptr += start * out_stride + head * out_head
    store_rows(out_ptr, begin, out_stride, new, out_MV * share, BLOCK_M, V)
