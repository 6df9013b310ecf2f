"""How long conversions take, as of now: the curve by which a bucket of delays is split at any window.

What has converted so far is a biased sample of delays: of recent requests only the quick conversions are known. So the
curve is built from hazards: of the requests old enough to have passed a bin of delays, and not converted before it, the
share that converted in it (Kaplan and Meier 1958, discrete). Recent requests then count for the bins they have passed
and for no others, and nothing that happens from ``now`` on changes anything (laws L2, L5).

A group (a segment of users, within it a user) has a curve of its own, drawn towards that of the group around it as far
as it has few conversions.

Shape legend: N requests (or candidates), G levels of groups from coarse to fine, J bins, K windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydantic

from streaming.config import Config as BaseConfig
from streaming.labels.attribution import DAY, NEVER, Int

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Level:
    """The groups of one level, by (group of the level above, key)."""

    keys: Int
    pairs: Int

    @staticmethod
    def of(parent_N: Int, key_N: Int) -> "_Level":
        keys = np.unique(key_N)
        return _Level(keys=keys, pairs=np.unique(parent_N * max(len(keys), 1) + np.searchsorted(keys, key_N)))

    def find(self, parent_N: Int, key_N: Int) -> Int:
        """Index of each group, -1 where it is not known or its parent is not."""
        place_N = np.searchsorted(self.keys, key_N).clip(max=len(self.keys) - 1)
        pair_N = parent_N * len(self.keys) + place_N
        group_N = np.searchsorted(self.pairs, pair_N).clip(max=len(self.pairs) - 1)
        known_N = (parent_N >= 0) & (self.keys[place_N] == key_N) & (self.pairs[group_N] == pair_N)
        return np.where(known_N, group_N, -1)


class DelayCurves:
    """Delay curves of all groups. Build one by :meth:`Config.estimate`."""

    class Config(BaseConfig):
        """Attributes:

        bins: of equal width, from the request to the attribution window.
        strength: how many conversions of its own a group needs to count as much as the group around it.
        lookback_days: requests made before that are left out; delays change slowly, but they do.
        """

        bins: int = pydantic.Field(default=56, ge=1)
        strength: float = pydantic.Field(default=50.0, gt=0.0)
        lookback_days: float = pydantic.Field(default=60.0, gt=0.0)

        def estimate(self, *, time_N: Int, conversion_N: Int, group_NG: Int, now: int, window: int) -> "DelayCurves":
            """Curves from what is known just before ``now``.

            Args:
                time_N: of requests, int64 microseconds.
                conversion_N: of their first conversions, NEVER for none.
                group_NG: keys of each request's groups, coarse to fine; G may be 0.
                now: requests and conversions from then on are not looked at.
                window: the attribution window; conversions after it do not count.
            """
            recent = (time_N < now) & (time_N >= now - round(self.lookback_days * DAY))
            time_N, conversion_N, group_NG = time_N[recent], conversion_N[recent], group_NG[recent]
            conversion_N = np.where(conversion_N < now, conversion_N, NEVER)
            edges_J = np.linspace(0, window, self.bins + 1)[1:]
            # Bin b holds delays in (edge b - 1, edge b], the first one 0 too. It is over once its end has passed.
            delay_N = np.where(conversion_N == NEVER, np.inf, conversion_N - time_N)
            bin_N = np.searchsorted(edges_J, delay_N, side="left")
            over_N = np.searchsorted(edges_J, now - time_N, side="left")
            counted = _Counts(bin_N=bin_N, over_N=over_N, bins=self.bins)
            hazard = counted.root()
            hazards, levels = [hazard], []
            group_N = np.zeros(len(time_N), dtype=np.int64)
            for key_N in group_NG.T:
                level = _Level.of(group_N, key_N)
                parent = level.pairs // max(len(level.keys), 1)
                group_N = level.find(group_N, key_N)
                hazard = counted.drawn(group_N, hazard[parent], strength=self.strength)
                hazards.append(hazard)
                levels.append(level)
            return DelayCurves(levels=levels, curves=[_cumulative(hazard) for hazard in hazards], edges=edges_J)

    def __init__(self, *, levels: list[_Level], curves: list[Float], edges: Float) -> None:
        self._levels = levels
        self._curves = curves
        self._edges = edges

    def within(self, group_NG: Int, window: int) -> Float:
        """Share of a group's conversions that come within ``window`` of the request, float ``[N]``.

        A group that is not known has the curve of the group around it.
        """
        edges = np.concatenate([[0.0], self._edges])
        group_N = np.zeros(len(group_NG), dtype=np.int64)
        share_N = _at(self._curves[0], edges, window)[group_N]
        for level, curve, key_N in zip(self._levels, self._curves[1:], group_NG.T, strict=True):
            if not len(level.keys):
                break
            group_N = level.find(group_N, key_N)
            share_N = np.where(group_N >= 0, _at(curve, edges, window)[group_N], share_N)
        return share_N

    def split(self, group_NG: Int, buckets: Sequence[tuple[int, int]], window: int) -> Float:
        """How much of each bucket of delays lies within ``window``, by conversions: float in [0, 1], ``[N, K]``.

        Args:
            buckets: (start, end) in microseconds after the request.
            window: in microseconds, at most the attribution window.
        """
        asked_N = self.within(group_NG, window)
        columns = []
        for start, end in buckets:
            before_N = self.within(group_NG, start)
            columns.append(np.clip((asked_N - before_N) / (self.within(group_NG, end) - before_N), 0.0, 1.0))
        return np.stack(columns, axis=1)

    def stretch(self, group_NG: Int, end: int, window: int) -> Float:
        """How many conversions come within ``window`` for one that comes by ``end``: float, 1 or more, ``[N]``."""
        return np.maximum(self.within(group_NG, window) / self.within(group_NG, end), 1.0)


@dataclass(frozen=True, kw_only=True)
class _Counts:
    """Requests by the bin in which they converted (J: not yet) and the number of bins that are over for them."""

    bin_N: Int
    over_N: Int
    bins: int

    def of(self, group_N: Int, groups: int) -> tuple[Float, Float]:
        """Conversions and requests at risk of each group and bin, float ``[groups, J]``."""
        bins = self.bins
        done = self.bin_N < self.over_N
        events = np.bincount(group_N[done] * bins + self.bin_N[done], minlength=groups * bins)
        # A request is at risk in the bins that are over, up to and with the one in which it converted.
        last_N = np.minimum(self.bin_N + 1, self.over_N)
        ends = np.bincount(group_N * (bins + 1) + last_N, minlength=groups * (bins + 1)).reshape(groups, bins + 1)
        risk = ends[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
        return events.reshape(groups, bins).astype(np.float64), risk.astype(np.float64)

    def root(self) -> Float:
        """Hazards ``[1, J]`` of all requests, with one more that converts evenly: no bin is ever empty."""
        events, risk = self.of(np.zeros_like(self.bin_N), 1)
        even = (events.sum() + 1) / (risk.sum() + self.bins)
        return (events + even) / (risk + 1)

    def drawn(self, group_N: Int, parent: Float, *, strength: float) -> Float:
        """Hazards of each group, as if ``strength`` conversions of the parent's kind were among its own."""
        events, risk = self.of(group_N, len(parent))
        extra = strength / (1 - np.prod(1 - parent, axis=1, keepdims=True))
        # Of `extra` requests like the parent's, as many as have not converted are at risk in each bin.
        left = extra * np.cumprod(np.concatenate([np.ones_like(parent[:, :1]), 1 - parent[:, :-1]], axis=1), axis=1)
        return (events + left * parent) / (risk + left)


def _cumulative(hazard: Float) -> Float:
    """Share of conversions up to each edge, 0 first and 1 last, float ``[groups, J + 1]``."""
    converted = 1 - np.cumprod(1 - hazard, axis=1)
    return np.concatenate([np.zeros_like(converted[:, :1]), converted / converted[:, -1:]], axis=1)


def _at(curve: Float, edges: Float, window: int) -> Float:
    """Each group's curve at ``window``, straight between edges, float ``[groups]``."""
    place = int(np.clip(np.searchsorted(edges, window) - 1, 0, len(edges) - 2))
    part = (window - edges[place]) / (edges[place + 1] - edges[place])
    return curve[:, place] + part * (curve[:, place + 1] - curve[:, place])
