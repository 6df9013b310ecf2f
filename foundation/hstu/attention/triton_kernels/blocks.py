"""Which tile a program computes, which blocks of keys or queries meet it, and who sees whom inside a block.

A tile is a run of rows (queries) or columns (keys) of one sequence. Everything here counts in tokens of one sequence,
from 0, ``history`` being where its targets begin and ``context`` where its contextual prefix ends. ``tail`` is the
first position that sees everything in spite of ``max_distance``.

:mod:`foundation.hstu.attention.semantics` defines the mask; the ranges of blocks below hold every pair it lets through.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl


@triton.jit
def find_tile(offsets_ptr, sequences, slot, BLOCK: tl.constexpr):
    """The sequence and the tile of a slot: ``(sequence, its first token, its length, tile)``.

    Sequence b owns the slots from ``offsets[b] // BLOCK + b`` on: never fewer than it has tiles, at most two more, so
    that ``T // BLOCK + B`` slots are enough for any lengths, and nobody has to read them back from the device. Tiles
    past the end have ``tile * BLOCK >= length``.
    """
    low = slot * 0
    high = low + sequences - 1
    while low < high:
        middle = (low + high + 1) // 2
        begins = tl.load(offsets_ptr + middle) // BLOCK + middle
        low = tl.where(begins <= slot, middle, low)
        high = tl.where(begins <= slot, high, middle - 1)
    start = tl.load(offsets_ptr + low)
    length = (tl.load(offsets_ptr + low + 1) - start).to(tl.int32)
    tile = slot - (start // BLOCK).to(tl.int32) - low
    return low, start, length, tile


@triton.jit
def last_tile_first(tile, length, BLOCK: tl.constexpr):
    """Tiles in descending order: late queries have the most keys, and the longest work should start first."""
    tiles = tl.cdiv(length, BLOCK)
    return tl.where(tile < tiles, tiles - 1 - tile, tile)


@triton.jit
def make_bounds(length, targets, contextual_len, full_tail):
    """What the mask asks of a sequence: ``(history, context, tail)``.

    With ``max_distance``, which may be None and then cannot be returned from here (Triton 3.6), that is ``bounds``.
    """
    history = length - targets.to(tl.int32)
    context = tl.minimum(contextual_len, history)
    tail = tl.where(full_tail > 0, history - full_tail, 2**30)
    return history, context, tail


@triton.jit
def sees(row, column, bounds):
    """The mask of a block: ``row`` and ``column`` broadcast against each other."""
    history, context, tail, max_distance = bounds
    seen = (column < row) & (column < history)
    if max_distance is not None:
        position = tl.minimum(row, history)
        seen &= (position - column <= max_distance) | (position >= tail) | (column < context)
    return seen | ((row < context) & (column < context)) | (row == column)


@triton.jit
def _floor(token, first, last, BLOCK: tl.constexpr):
    return tl.minimum(tl.maximum(token - first, 0), last - first) // BLOCK


@triton.jit
def _ceil(token, first, last, BLOCK: tl.constexpr):
    return tl.cdiv(tl.minimum(tl.maximum(token - first, 0), last - first), BLOCK)


@triton.jit
def key_blocks(row, row_end, bounds, first, last, BLOCK: tl.constexpr):
    """Blocks of the keys ``first:last`` that the rows ``row:row_end`` see.

    Returns ``(context_end, near, full, full_end, near_end, own, own_end)``, counted in blocks from ``first`` and
    ascending. Seen are ``[0, context_end)``, ``[near, near_end)`` and, by targets, ``[own, own_end)``; every row sees
    every column of ``[full, full_end)``, which therefore needs no mask.
    """
    history, context, tail, max_distance = bounds
    seen_end = tl.where(row < context, tl.maximum(row_end, context), row_end)
    seen_from = row * 0
    full_from = row * 0
    if max_distance is not None:
        lowest = tl.minimum(row, history)
        highest = tl.minimum(row_end - 1, history)
        seen_from = tl.where(highest >= tail, 0, lowest - max_distance)
        full_from = tl.where(lowest >= tail, 0, highest - max_distance)
    near = _floor(seen_from, first, last, BLOCK)
    near_end = tl.maximum(_ceil(tl.minimum(seen_end, history), first, last, BLOCK), near)
    full = tl.minimum(tl.maximum(_ceil(full_from, first, last, BLOCK), near), near_end)
    full_end = tl.minimum(tl.maximum(_floor(tl.minimum(row, history), first, last, BLOCK), full), near_end)
    context_end = tl.minimum(_ceil(context, first, last, BLOCK), near)
    own = tl.maximum(_floor(tl.maximum(row, history), first, last, BLOCK), near_end)
    own_end = tl.where(row_end > history, tl.maximum(_ceil(row_end, first, last, BLOCK), own), own)
    return context_end, near, full, full_end, near_end, own, own_end


@triton.jit
def masked_key_block(step, context_end, near, full, full_end, near_end, own):
    """The ``step``-th of the blocks of :func:`key_blocks` that need the mask."""
    block = tl.where(step >= context_end, step + near - context_end, step)
    block = tl.where(block >= full, block + full_end - full, block)
    return tl.where(block >= near_end, block + own - near_end, block)


@triton.jit
def query_blocks(column, column_end, length, bounds, BLOCK: tl.constexpr):
    """Blocks of the sequence's rows that see the columns ``column:column_end``.

    Returns ``(near, full, full_end, near_end, late, late_full, late_end)``, in blocks and ascending. Seeing are
    ``[near, near_end)`` and ``[late, late_end)``, the tail beyond ``max_distance``; in ``[full, full_end)`` and
    ``[late_full, late_end)`` every row sees every column.
    """
    history, context, tail, max_distance = bounds
    end = tl.cdiv(length, BLOCK)
    near = tl.where(column < context, 0, column) // BLOCK
    own_end = tl.cdiv(column_end, BLOCK)
    near_end = tl.where(column < history, end, own_end)
    full_end = near_end
    late = end
    if max_distance is not None:
        # Rows of history see as far as max_distance; targets stand at the position `history`, all or none near.
        seen_end = tl.minimum(column_end, history) + max_distance
        beyond = (column >= context) & (seen_end <= history)
        near_end = tl.where(beyond, tl.maximum(tl.cdiv(seen_end, BLOCK), own_end), near_end)
        all_near = (column_end <= context) | (history - column <= max_distance)
        full_end = tl.where(all_near, near_end, (column + max_distance + 1) // BLOCK)
        late = tl.where((column < history) & (tail < length), tl.maximum(tail // BLOCK, near_end), end)
    # A block that holds columns of targets is never seen as a whole.
    whole = column_end <= history
    full = tl.where(whole, tl.minimum(tl.maximum(own_end, near), near_end), near_end)
    full_end = tl.minimum(tl.maximum(full_end, full), near_end)
    late_full = tl.where(whole, tl.maximum(tl.cdiv(tl.maximum(tail, column_end), BLOCK), late), end)
    return near, full, full_end, near_end, late, tl.minimum(late_full, end), end


@triton.jit
def masked_query_block(step, near, full, full_end, near_end, late):
    """The ``step``-th of the blocks of :func:`query_blocks` that need the mask."""
    block = tl.where(near + step >= full, near + step + full_end - full, near + step)
    return tl.where(block >= near_end, block + late - near_end, block)
