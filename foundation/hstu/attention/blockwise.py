"""HSTU attention in plain PyTorch, in tiles: what runs where nothing can be compiled.

Nothing is normalised over a row, so a row's output is a plain sum over columns: tiles of scores are made, used and
forgotten one at a time, and memory grows with the tokens, not with their square. The backward makes each tile again.
All sums are in float32, whatever the inputs; sums over a bias table in float64, because one entry may serve millions of
pairs. Everything runs in one fixed order: the same numbers give the same bits.

Shape legend: T tokens of all sequences, S stored tokens, H heads, D width of queries and keys, V width of values;
n tokens of one sequence, m of them with queries (the last ones); r rows and c columns of one tile.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.hstu.attention.semantics import sees, sequence_positions, time_buckets

BLOCK = 256
"""Rows and columns of the largest tile: the scores of a few heads then stay in a core's cache."""


@dataclass(frozen=True)
class _Rule:
    """What is the same for all sequences; ``tables`` by name, those that are given."""

    tables: dict[str, Tensor]
    max_seq_len: int
    contextual_len: int
    max_distance: int | None
    full_tail: int
    scale: float


def forward(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    num_targets: Tensor,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    timestamps: Tensor | None,
    max_seq_len: int,
    contextual_len: int,
    max_distance: int | None,
    full_tail: int,
    scale: float,
) -> Tensor:
    """See :func:`foundation.hstu.attention.operator.attention`; ``[T, H, V]``."""
    rule = _Rule(_tables(position_bias, time_bias), max_seq_len, contextual_len, max_distance, full_tail, scale)
    output_THV = _empty_like(v_THV)
    for own, targets in _sequences(offsets, num_targets):
        tiles = _Tiles(rule, q_THD[own], k_THD[own], targets, None if timestamps is None else timestamps[own])
        output_THV[own] = tiles.attend(v_THV[own])
    return output_THV


def cached(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    k_cache_SHD: Tensor,
    v_cache_SHV: Tensor,
    cache_offsets: Tensor,
    num_targets: Tensor,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    timestamps: Tensor | None,
    cache_timestamps: Tensor | None,
    max_seq_len: int,
    contextual_len: int,
    max_distance: int | None,
    full_tail: int,
    scale: float,
) -> Tensor:
    """See :func:`foundation.hstu.attention.operator.attention_cached`; ``[T, H, V]``."""
    rule = _Rule(_tables(position_bias, time_bias), max_seq_len, contextual_len, max_distance, full_tail, scale)
    output_THV = _empty_like(v_THV)
    pairs = zip(_sequences(cache_offsets, num_targets), _sequences(offsets, num_targets), strict=True)
    for (old, _), (new, targets) in pairs:
        time_n = None
        if timestamps is not None and cache_timestamps is not None:
            time_n = torch.cat([cache_timestamps[old], timestamps[new]])
        tiles = _Tiles(rule, q_THD[new], torch.cat([k_cache_SHD[old], k_THD[new]]), targets, time_n)
        output_THV[new] = tiles.attend(torch.cat([v_cache_SHV[old], v_THV[new]]))
    return output_THV


def backward(
    grad_THV: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    num_targets: Tensor,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    timestamps: Tensor | None,
    max_seq_len: int,
    contextual_len: int,
    max_distance: int | None,
    full_tail: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`foundation.hstu.attention.operator.attention_backward`."""
    rule = _Rule(_tables(position_bias, time_bias), max_seq_len, contextual_len, max_distance, full_tail, scale)
    dq_THD, dk_THD, dv_THV = _empty_like(q_THD), _empty_like(k_THD), _empty_like(v_THV)
    sums = {name: torch.zeros_like(table, dtype=torch.float64) for name, table in rule.tables.items()}
    for own, targets in _sequences(offsets, num_targets):
        tiles = _Tiles(rule, q_THD[own], k_THD[own], targets, None if timestamps is None else timestamps[own])
        dq_THD[own], dk_THD[own], dv_THV[own] = tiles.differentiate(v_THV[own], grad_THV[own], sums)
    dposition, dtime = (sums[name].float() if name in sums else q_THD.new_empty(0) for name in ("position", "time"))
    return dq_THD, dk_THD, dv_THV, dposition, dtime


def tiles_of(
    first_row: int, length: int, targets: int, *, contextual_len: int, max_distance: int | None, full_tail: int
) -> Iterator[tuple[slice, slice]]:
    """Tiles (rows, columns) that hold each pair that sees one another once, for the rows of a sequence from one on.

    Tiles without such a pair are left out; within a tile, :func:`foundation.hstu.attention.semantics.sees` decides.
    """
    history_end = length - targets
    context = min(contextual_len, history_end)
    for rows in (*_blocks(first_row, history_end), *_blocks(max(first_row, history_end), length)):
        in_tail = full_tail > 0 and rows.stop > history_end - full_tail
        near = 0 if max_distance is None or in_tail else max(0, min(rows.start, history_end) - max_distance)
        far = min(rows.stop, history_end) if rows.start >= context else max(rows.stop, context)
        yield from ((rows, columns) for columns in _blocks(0, min(context, near)))
        yield from ((rows, columns) for columns in _blocks(near, far))
        if rows.start >= history_end:
            yield rows, rows


class _Tiles:
    """The scores of one sequence, a tile at a time."""

    def __init__(self, rule: _Rule, q_mHD: Tensor, k_nHD: Tensor, targets: int, time_n: Tensor | None) -> None:
        self.rule = rule
        self.q_HmD = q_mHD.transpose(0, 1).float() * rule.scale
        self.k_HnD = k_nHD.transpose(0, 1).float()
        self.time_n = time_n
        self.length, self.targets = len(k_nHD), targets
        self.first_row = self.length - len(q_mHD)
        self.index_n = torch.arange(self.length, device=k_nHD.device)
        self.position_n = sequence_positions(self.length, targets).to(k_nHD.device)

    def attend(self, v_nHV: Tensor) -> Tensor:
        """Output ``[m, H, V]`` in float32."""
        v_HnV = v_nHV.transpose(0, 1).float()
        output_HmV = v_HnV.new_zeros(*self.q_HmD.shape[:2], v_HnV.shape[2])
        for rows, columns in self:
            score_Hrc = self._scores(rows, columns, self._entries(rows, columns))
            weight_Hrc = F.silu(score_Hrc, inplace=True).masked_fill_(self._hidden(rows, columns), 0.0)
            output_HmV[:, self._query(rows)].baddbmm_(weight_Hrc, v_HnV[:, columns])
        return output_HmV.div_(self.rule.max_seq_len).transpose(0, 1)

    def differentiate(self, v_nHV: Tensor, grad_mHV: Tensor, sums: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k, v in float32; those of the tables are added to ``sums``."""
        v_HnV, grad_HmV = v_nHV.transpose(0, 1).float(), grad_mHV.transpose(0, 1).float() / self.rule.max_seq_len
        dq_HmD, dk_HnD, dv_HnV = (torch.zeros_like(value) for value in (self.q_HmD, self.k_HnD, v_HnV))
        for rows, columns in self:
            query = self._query(rows)
            entries = self._entries(rows, columns)
            score_Hrc = self._scores(rows, columns, entries)
            hidden_rc = self._hidden(rows, columns)
            dweight_Hrc = torch.bmm(grad_HmV[:, query], v_HnV[:, columns].mT)
            dscore_Hrc = torch.ops.aten.silu_backward(dweight_Hrc, score_Hrc).masked_fill_(hidden_rc, 0.0)
            weight_Hrc = F.silu(score_Hrc, inplace=True).masked_fill_(hidden_rc, 0.0)
            dv_HnV[:, columns].baddbmm_(weight_Hrc.mT, grad_HmV[:, query])
            dk_HnD[:, columns].baddbmm_(dscore_Hrc.mT, self.q_HmD[:, query])
            dq_HmD[:, query].baddbmm_(dscore_Hrc, self.k_HnD[:, columns])
            dbias = dscore_Hrc.sum(0).flatten().double()
            for name, entry_rc in entries.items():
                sums[name] += torch.bincount(entry_rc.flatten(), weights=dbias, minlength=len(sums[name]))
        return dq_HmD.mul_(self.rule.scale).transpose(0, 1), dk_HnD.transpose(0, 1), dv_HnV.transpose(0, 1)

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        return tiles_of(
            self.first_row,
            self.length,
            self.targets,
            contextual_len=self.rule.contextual_len,
            max_distance=self.rule.max_distance,
            full_tail=self.rule.full_tail,
        )

    def _query(self, rows: slice) -> slice:
        """Where in the queries given the rows of the sequence are."""
        return slice(rows.start - self.first_row, rows.stop - self.first_row)

    def _entries(self, rows: slice, columns: slice) -> dict[str, Tensor]:
        """Which entry of each table every pair takes, int64 ``[r, c]``."""
        entries = {}
        if "position" in self.rule.tables:
            apart_rc = self.position_n[rows, None] - self.position_n[None, columns]
            entries["position"] = apart_rc.clamp_(0, len(self.rule.tables["position"]) - 1)
        if "time" in self.rule.tables and self.time_n is not None:
            count = len(self.rule.tables["time"])
            entries["time"] = time_buckets(self.time_n[rows], self.time_n[columns], count=count)
        return entries

    def _scores(self, rows: slice, columns: slice, entries: dict[str, Tensor]) -> Tensor:
        score_Hrc = torch.bmm(self.q_HmD[:, self._query(rows)], self.k_HnD[:, columns].mT)
        for name, entry_rc in entries.items():
            score_Hrc += self.rule.tables[name][entry_rc]
        return score_Hrc

    def _hidden(self, rows: slice, columns: slice) -> Tensor:
        """Which pairs of a tile count for nothing."""
        return ~sees(
            self.index_n[rows, None],
            self.index_n[None, columns],
            history_end=self.length - self.targets,
            contextual_len=self.rule.contextual_len,
            max_distance=self.rule.max_distance,
            full_tail=self.rule.full_tail,
        )


def _blocks(start: int, stop: int) -> Iterator[slice]:
    return (slice(first, min(first + BLOCK, stop)) for first in range(start, stop, BLOCK))


def _sequences(offsets: Tensor, num_targets: Tensor) -> list[tuple[slice, int]]:
    """Where each sequence's tokens are, and how many of them are targets."""
    spans = itertools.starmap(slice, itertools.pairwise(offsets.tolist()))
    return list(zip(spans, num_targets.tolist(), strict=True))


def _tables(position_bias: Tensor | None, time_bias: Tensor | None) -> dict[str, Tensor]:
    tables = {"position": position_bias, "time": time_bias}
    return {name: table for name, table in tables.items() if table is not None}


def _empty_like(value: Tensor) -> Tensor:
    return torch.empty_like(value, memory_format=torch.contiguous_format)
