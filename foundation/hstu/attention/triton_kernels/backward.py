"""Backward of q, k and v: scores are computed again, from both sides, so that every gradient has one owner.

``attention_backward_keys`` owns a tile of keys and walks the queries that see it; ``attention_backward_queries`` owns a
tile of queries and walks its keys. No sum is shared between programs: no atomics, and the same bits every time.

Legend: M rows (queries) and N columns (keys), of a tile or a block, D width of queries and keys, V width of values.
``grad`` is the gradient of the output. ``bounds`` and ``bias`` as in ``forward``.
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
    masked_query_block,
    query_blocks,
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
def _add_queries(
    dk_ND,
    dv_NV,
    k_ND,
    v_NV,
    column_N,
    time_N,
    block,
    queries,
    bounds,
    bias,
    scale,
    D: tl.constexpr,
    V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    q_ptr, grad_ptr, time_ptr, q_stride, grad_stride, length = queries
    begin = block * BLOCK_M
    q_MD = load_rows(q_ptr, begin, q_stride, length, BLOCK_M, D)
    grad_MV = load_rows(grad_ptr, begin, grad_stride, length, BLOCK_M, V)
    time_M = load_times(time_ptr, begin, length, BLOCK_M)
    row, column = (begin + tl.arange(0, BLOCK_M))[None, :], column_N[:, None]
    scores_NM = dot(k_ND, tl.trans(q_MD), PRECISION) * scale
    scores_NM = add_biases(scores_NM, row, column, time_M[None, :], time_N[:, None], bounds, bias)
    weights_NM, slopes_NM = silu(scores_NM, q_MD.dtype)
    if MASKED:
        seen = sees(row, column, bounds)
        weights_NM = tl.where(seen, weights_NM, 0.0)
        slopes_NM = tl.where(seen, slopes_NM, 0.0)
    dv_NV += dot(weights_NM.to(grad_MV.dtype), grad_MV, PRECISION)
    dscores_NM = dot(v_NV, tl.trans(grad_MV), PRECISION) * slopes_NM
    dk_ND += dot(dscores_NM.to(q_MD.dtype), q_MD, PRECISION)
    return dk_ND, dv_NV


@triton.jit(do_not_specialize=["sequences", "positions", "buckets", "contextual_len", "max_distance", "full_tail"])
def attention_backward_keys(
    grad_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    time_ptr,
    dk_ptr,
    dv_ptr,
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
    dk_stride,
    dk_head,
    dv_stride,
    dv_head,
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
    """``dk = share * scale * dscores^T q`` and ``dv = share * weights^T grad`` of one tile of keys."""
    sequence, start, length, tile = find_tile(offsets_ptr, sequences, tl.program_id(0), BLOCK_N)
    if tile * BLOCK_N >= length:
        return
    head = tl.program_id(1)
    history, context, tail = make_bounds(length, tl.load(num_targets_ptr + sequence), contextual_len, full_tail)
    bounds = (history, context, tail, max_distance)
    bias = (position_bias_ptr, positions, time_bias_ptr, bucket_starts_ptr, buckets)
    if time_ptr is not None:
        time_ptr += start

    begin = tile * BLOCK_N
    column_N = begin + tl.arange(0, BLOCK_N)
    k_ND = load_rows(k_ptr + start * k_stride + head * k_head, begin, k_stride, length, BLOCK_N, D)
    v_NV = load_rows(v_ptr + start * v_stride + head * v_head, begin, v_stride, length, BLOCK_N, V)
    time_N = load_times(time_ptr, begin, length, BLOCK_N)
    queries = (
        q_ptr + start * q_stride + head * q_head,
        grad_ptr + start * grad_stride + head * grad_head,
        time_ptr,
        q_stride,
        grad_stride,
        length,
    )
    near, full, full_end, near_end, late, late_full, end = query_blocks(
        begin, tl.minimum(begin + BLOCK_N, length), length, bounds, BLOCK_M
    )
    dk_ND = tl.zeros([BLOCK_N, D], tl.float32)
    dv_NV = tl.zeros([BLOCK_N, V], tl.float32)
    for step in range(0, (full - near) + (near_end - full_end) + (late_full - late)):
        block = masked_query_block(step, near, full, full_end, near_end, late)
        dk_ND, dv_NV = _add_queries(
            dk_ND, dv_NV, k_ND, v_NV, column_N, time_N, block, queries, bounds, bias, scale,
            D, V, BLOCK_M, PRECISION, True,
        )  # fmt: skip
    for step in range(0, (full_end - full) + (end - late_full)):
        block = tl.where(full + step < full_end, full + step, step + late_full - (full_end - full))
        dk_ND, dv_NV = _add_queries(
            dk_ND, dv_NV, k_ND, v_NV, column_N, time_N, block, queries, bounds, bias, scale,
            D, V, BLOCK_M, PRECISION, False,
        )  # fmt: skip
    dk_ptr += start * dk_stride + head * dk_head
    dv_ptr += start * dv_stride + head * dv_head
    store_rows(dk_ptr, begin, dk_stride, length, dk_ND * (scale * share), BLOCK_N, D)
    store_rows(dv_ptr, begin, dv_stride, length, dv_NV * share, BLOCK_N, V)


@triton.jit
def _add_keys(
    dq_MD,
    q_MD,
    grad_MV,
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
    k_ptr, v_ptr, time_ptr, k_stride, v_stride, length = keys
    begin = block * BLOCK_N
    k_ND = load_rows(k_ptr, begin, k_stride, length, BLOCK_N, D)
    v_NV = load_rows(v_ptr, begin, v_stride, length, BLOCK_N, V)
    time_N = load_times(time_ptr, begin, length, BLOCK_N)
    row, column = row_M[:, None], (begin + tl.arange(0, BLOCK_N))[None, :]
    scores_MN = dot(q_MD, tl.trans(k_ND), PRECISION) * scale
    scores_MN = add_biases(scores_MN, row, column, time_M[:, None], time_N[None, :], bounds, bias)
    _weights_MN, slopes_MN = silu(scores_MN, q_MD.dtype)
    if MASKED:
        slopes_MN = tl.where(sees(row, column, bounds), slopes_MN, 0.0)
    dscores_MN = dot(grad_MV, tl.trans(v_NV), PRECISION) * slopes_MN
    return dq_MD + dot(dscores_MN.to(k_ND.dtype), k_ND, PRECISION)


@triton.jit(do_not_specialize=["sequences", "positions", "buckets", "contextual_len", "max_distance", "full_tail"])
def attention_backward_queries(
    grad_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    time_ptr,
    dq_ptr,
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
    dq_stride,
    dq_head,
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
    """``dq = share * scale * dscores k`` of one tile of queries."""
    sequence, start, length, tile = find_tile(offsets_ptr, sequences, tl.program_id(0), BLOCK_M)
    tile = last_tile_first(tile, length, BLOCK_M)
    if tile * BLOCK_M >= length:
        return
    head = tl.program_id(1)
    history, context, tail = make_bounds(length, tl.load(num_targets_ptr + sequence), contextual_len, full_tail)
    bounds = (history, context, tail, max_distance)
    bias = (position_bias_ptr, positions, time_bias_ptr, bucket_starts_ptr, buckets)
    if time_ptr is not None:
        time_ptr += start

    begin = tile * BLOCK_M
    row_M = begin + tl.arange(0, BLOCK_M)
    q_MD = load_rows(q_ptr + start * q_stride + head * q_head, begin, q_stride, length, BLOCK_M, D)
    grad_ptr += start * grad_stride + head * grad_head
    grad_MV = load_rows(grad_ptr, begin, grad_stride, length, BLOCK_M, V)
    time_M = load_times(time_ptr, begin, length, BLOCK_M)
    keys = (
        k_ptr + start * k_stride + head * k_head,
        v_ptr + start * v_stride + head * v_head,
        time_ptr,
        k_stride,
        v_stride,
        length,
    )
    context_end, near, full, full_end, near_end, own, own_end = key_blocks(
        begin, tl.minimum(begin + BLOCK_M, length), bounds, 0, length, BLOCK_N
    )
    dq_MD = tl.zeros([BLOCK_M, D], tl.float32)
    for step in range(0, context_end + (full - near) + (near_end - full_end) + (own_end - own)):
        block = masked_key_block(step, context_end, near, full, full_end, near_end, own)
        dq_MD = _add_keys(
            dq_MD, q_MD, grad_MV, row_M, time_M, block, keys, bounds, bias, scale,
            D, V, BLOCK_N, PRECISION, True,
        )  # fmt: skip
    for block in range(full, full_end):
        dq_MD = _add_keys(
            dq_MD, q_MD, grad_MV, row_M, time_M, block, keys, bounds, bias, scale,
            D, V, BLOCK_N, PRECISION, False,
        )  # fmt: skip
    dq_ptr += start * dq_stride + head * dq_head
    store_rows(dq_ptr, begin, dq_stride, length, dq_MD * (scale * share), BLOCK_M, D)
