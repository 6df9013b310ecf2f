"""From products of queries and keys to scores, and SiLU of them.

Tables are float32. ``bucket_starts`` holds where each time bucket begins, between a 0 and an infinity: K + 1 numbers.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from foundation.hstu.attention.semantics import BUCKET_STEP
from foundation.hstu.attention.triton_kernels.interpreter import interpreted

COMPILED = tl.constexpr(not interpreted())
FEW = tl.constexpr(3)
"""Buckets after a block's first one up to which comparing times is faster than looking buckets up."""
SECOND = tl.constexpr(1e6)
BUCKETS_PER_OCTAVE = tl.constexpr(0.6931471805599453 / BUCKET_STEP)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """Matrix product, accumulated in float32."""
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def load_rows(base, first, stride, count, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """``[ROWS, WIDTH]`` from row ``first`` on, zeros past ``count`` rows.

    Zeros are what makes rows and columns outside a sequence harmless wherever the mask has let them through.
    """
    row, lane = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    # A sum of one 64-bit number for the block and 32-bit ones inside it: tokens times width may pass 2^31.
    pointers = base + tl.cast(first, tl.int64) * stride + (row * stride + lane)
    return tl.load(pointers, mask=row < count - first, other=0.0)


@triton.jit
def store_rows(base, first, stride, count, values, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The converse of :func:`load_rows`; ``values`` take the dtype of what is written to."""
    row, lane = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    pointers = base + tl.cast(first, tl.int64) * stride + (row * stride + lane)
    tl.store(pointers, values.to(base.dtype.element_ty), mask=row < count - first)


@triton.jit
def load_times(time_ptr, first, count, ROWS: tl.constexpr):
    """Timestamps of ``ROWS`` rows; where there are none, and nothing will ask for them, just numbers."""
    times = tl.arange(0, ROWS)
    if time_ptr is not None:
        times = tl.load(time_ptr + first + times, mask=times < count - first, other=0)
    return times


@triton.jit
def distances(row, column, bounds, positions):
    """Entry of the table by position for each pair, between 0 and ``positions - 1``."""
    history = bounds[0]
    distance = tl.minimum(row, history) - tl.minimum(column, history)
    return tl.minimum(tl.maximum(distance, 0), positions - 1)


@triton.jit
def to_bucket(apart, bucket_starts_ptr, buckets):
    """Entry of the table by time for ``apart`` microseconds: how many of the buckets after the first have begun.

    The logarithm finds the beginning of a bucket that is nearest, whatever its own last bits are; one comparison with
    that number, the reference's own, says on which side of it the pair lies.
    """
    apart = apart.to(tl.float32)
    octaves = tl.log2(tl.maximum(apart / SECOND, 1.0))
    nearest = tl.minimum(tl.floor(octaves * BUCKETS_PER_OCTAVE + 0.5).to(tl.int32), buckets)
    return nearest - (apart < tl.load(bucket_starts_ptr + nearest)).to(tl.int32)


@triton.jit
def bucket_range(row_time, column_time, bucket_starts_ptr, buckets):
    """First and last bucket that any pair of a block may fall into."""
    row_low, row_high = tl.min(row_time), tl.max(row_time)
    column_low, column_high = tl.min(column_time), tl.max(column_time)
    least = tl.maximum(tl.maximum(row_low - column_high, column_low - row_high), 0)
    most = tl.maximum(row_high - column_low, column_high - row_low)
    return to_bucket(least, bucket_starts_ptr, buckets), to_bucket(most, bucket_starts_ptr, buckets)


@triton.jit
def add_biases(scores, row, column, row_time, column_time, bounds, bias):
    """Scores with both biases; a table that is None adds nothing. Rows and columns broadcast against each other.

    Blocks far from the diagonal mostly lie in one entry of a table, or in a few of the one by time: they look those up
    once, not once a pair. The branches also keep the compiler from prefetching whole blocks of looked-up values into
    shared memory.
    """
    position_bias_ptr, positions, time_bias_ptr, bucket_starts_ptr, buckets = bias
    if position_bias_ptr is not None:
        if tl.minimum(tl.min(row), bounds[0]) - tl.minimum(tl.max(column), bounds[0]) >= positions - 1:
            scores += tl.load(position_bias_ptr + positions - 1)
        else:
            scores += tl.load(position_bias_ptr + distances(row, column, bounds, positions))
    if time_bias_ptr is not None:
        first, last = bucket_range(row_time, column_time, bucket_starts_ptr, buckets)
        if first == last:
            scores += tl.load(time_bias_ptr + first)
        elif last - first <= FEW:
            apart = tl.abs(row_time - column_time).to(tl.float32)
            value = tl.load(time_bias_ptr + first)
            for step in tl.static_range(1, FEW + 1):
                bucket = tl.minimum(first + step, last)
                begun = apart >= tl.load(bucket_starts_ptr + bucket)
                value = tl.where(begun, tl.load(time_bias_ptr + bucket), value)
            scores += value
        else:
            scores += tl.load(time_bias_ptr + to_bucket(tl.abs(row_time - column_time), bucket_starts_ptr, buckets))
    return scores


@triton.jit
def silu(scores, dtype: tl.constexpr):
    """SiLU and its derivative, to the digits of what they are multiplied with.

    The gate of bfloat16 is a hyperbolic tangent, one instruction of a GPU's special function unit that errs by less
    than 2^-10; an exponential and a reciprocal are two, and there are too few such units for two.
    """
    if COMPILED and dtype == tl.bfloat16:
        half = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [scores * 0.5], dtype=tl.float32, is_pure=True, pack=1
        )
        gate = 0.5 + 0.5 * half
    else:
        gate = tl.sigmoid(scores)
    return scores * gate, gate + scores * gate * (1.0 - gate)
