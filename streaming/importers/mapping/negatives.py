"""Negatives for implicit logs: what was on offer and not taken, drawn as of the request's time.

A log of purchases or plays says nothing of what else could have been shown. Here every candidate of a request, positive
or drawn, comes from one **pool**: the items that the log had shown on the surface strictly before the request, without
those that the user had engaged with before where ``exclude_seen`` says so. A positive that is not in the pool is no
candidate: were it one, "never seen on this surface" or "engaged with before" would tell its label (law L6).

Draws are without replacement, by exponential races: item ``i`` arrives at rate ``p_i``, the first k arrivals win. Given
the arrival of the next one at ``tau``, winner ``i`` was in with probability ``1 - exp(-p_i tau)``, and its inverse says
how many of the pool it stands for (Cohen and Kaplan, Summarizing Data Using Bottom-k Sketches, PODC 2007: rank
conditioning). Scaled, the weights of a request's surface sum to the size of its pool there exactly; with few draws at
very uneven rates the scaling leaves the rare ones counted somewhat low.

Legend: B requests, P positives, C candidates, E engagements.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pydantic

from streaming.config import Config as BaseConfig
from streaming.importers.mapping.pools import Catalogue, Float, Int, Pool, Seen

POSITIVE, DRAWN = 0, 1
"""Strata of the candidates."""


@dataclass(frozen=True, kw_only=True)
class Positives:
    """What one window's requests took; all int64, users and items as any numbers that tell them apart.

    Attributes:
        request_id, user, time: of each request [B]; time in microseconds UTC.
        offsets: the positives of request b are at [offsets[b], offsets[b + 1]) [B + 1].
        item, surface: of each positive [P].
        row_time: when each positive was shown, where that may be later than its request's time [P].
    """

    request_id: Int
    user: Int
    time: Int
    offsets: Int
    item: Int
    surface: Int
    row_time: Int | None = None


@dataclass(frozen=True, kw_only=True)
class Engaged:
    """Other rows of the window that show what was on offer and who knows it [E]; surface -1 is on none."""

    user: Int
    time: Int
    item: Int
    surface: Int


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Candidates of one window's requests, in random order within a request.

    Attributes:
        offsets: the candidates of request b are at [offsets[b], offsets[b + 1]), none if no positive of it was in its
            pool [B + 1].
        item, surface: int64 [C].
        row: which positive it is, an index in [0, P), or -1 where drawn [C].
        weight: how many items of the pool each one stands for: 1 for a positive [C].
        outside: positives that were not in their pool, or that their request repeats: no candidates.
    """

    offsets: Int
    item: Int
    surface: Int
    row: Int
    weight: Float
    outside: int

    @property
    def stratum(self) -> Int:
        """POSITIVE or DRAWN [C]."""
        return np.where(self.row >= 0, POSITIVE, DRAWN)


class Negatives:
    """Draws the negatives of one window after another, in the order of time.

    It remembers what each surface has shown since when, how often it was taken in the windows before, and, for
    ``exclude_seen``, who engaged with what: memory grows with items and with pairs of user and item, not with rows.

    >>> negatives = Negatives.Config(per_positive=4).build(seed=0, surfaces=2)
    >>> candidates = [negatives.window(positives) for positives in windows]
    """

    class Config(BaseConfig):
        """How negatives are drawn.

        Attributes:
            per_positive: draws for each positive, or as many as the pool holds.
            source: in a file, ``from``. ``surface_catalogue``: all items of the pool alike. ``popularity``: in
                proportion to 1 + the times the item was taken on the surface in the windows before.
            exclude_seen: leaves out what the user engaged with before, drawn or positive: for surfaces that offer only
                what is new to the user.
        """

        model_config = pydantic.ConfigDict(populate_by_name=True)

        per_positive: int = pydantic.Field(ge=1)
        source: Literal["surface_catalogue", "popularity"] = pydantic.Field(default="surface_catalogue", alias="from")
        exclude_seen: bool = False

        def build(self, *, seed: int, surfaces: int) -> "Negatives":
            """``surfaces``: how many there are."""
            return Negatives(config=self, seed=seed, surfaces=surfaces)

    def __init__(self, *, config: Config, seed: int, surfaces: int) -> None:
        self._config = config
        self._seed = seed
        self._catalogues = [Catalogue() for _ in range(surfaces)]
        self._seen = Seen()
        self._until = np.iinfo(np.int64).min

    def window(self, positives: Positives, engaged: Engaged | None = None) -> Candidates:
        """Candidates of the next window's requests.

        A request's draws follow from the seed, its id and what lies before its time. Which other requests are asked for
        beside it changes nothing but the catalogue that their rows make.

        Raises:
            ValueError: a row lies before one of an earlier window.
        """
        rows = _rows(positives)
        self._observe(rows if engaged is None else _join(rows, engaged))
        weighted = self._config.source == "popularity"
        pools = [catalogue.pool(weighted=weighted) for catalogue in self._catalogues]
        drawn, sizes = _Drawn(), []
        for request in range(len(positives.request_id)):
            before = len(drawn)
            self._request(request, positives, pools, drawn)
            sizes.append(len(drawn) - before)
        for surface, catalogue in enumerate(self._catalogues):
            catalogue.count(positives.item[positives.surface == surface])
        (item, of_surface, row), weight = drawn.joined()
        return Candidates(
            offsets=np.cumsum([0, *sizes], dtype=np.int64),
            item=item,
            surface=of_surface,
            row=row,
            weight=weight,
            outside=len(positives.item) - int((row >= 0).sum()),
        )

    def _observe(self, rows: Engaged) -> None:
        if len(rows.time) == 0:
            return
        if rows.time.min() < self._until:
            raise ValueError("windows must come in the order of time")
        self._until = int(rows.time.max())
        for surface, catalogue in enumerate(self._catalogues):
            here = rows.surface == surface
            catalogue.add(rows.item[here], rows.time[here])
        if self._config.exclude_seen:
            self._seen.add(rows.user, rows.item, rows.time)

    def _request(self, request: int, positives: Positives, pools: list["Pool"], drawn: "_Drawn") -> None:
        """Add one request's candidates, surface after surface, then all of them in random order."""
        part = slice(positives.offsets[request], positives.offsets[request + 1])
        item, surface, time = positives.item[part], positives.surface[part], int(positives.time[request])
        # A generator of its own, so that a request's draws do not depend on which others are imported.
        random = np.random.default_rng([self._seed, int(positives.request_id[request]) % 2**64])
        seen = self._seen.before(int(positives.user[request]), time) if self._config.exclude_seen else item[:0]
        codes: list[Int] = []
        weights: list[Float] = []
        for number in np.unique(surface).tolist():
            pool, catalogue = pools[number], self._catalogues[number]
            size = catalogue.size_before(time)
            here = np.flatnonzero(surface == number)
            position, first = np.unique(catalogue.positions(item[here], size), return_index=True)
            row = here[first[(position >= 0) & ~np.isin(item[here[first]], seen)]]
            taken = catalogue.positions(np.concatenate([item, seen]), size)
            taken = np.unique(taken[taken >= 0])
            if len(row) == 0:
                continue
            others, weight = pool.draw(random, size=size, taken=taken, draws=self._config.per_positive * len(row))
            chosen = np.append(item[row], catalogue.item[others])
            of = np.append(row + part.start, np.full(len(others), -1))
            codes.append(np.stack([chosen, np.full(len(chosen), number), of]))
            weights += [np.ones(len(row)), weight]
        if codes:
            codes_3C, weight = np.concatenate(codes, axis=1), np.concatenate(weights)
            order = random.permutation(len(weight))
            drawn.append(codes_3C[:, order], weight[order])


class _Drawn:
    """Columns item, surface, row and weight, request after request."""

    def __init__(self) -> None:
        self._size = 0
        self._codes: list[Int] = [np.zeros((3, 0), np.int64)]
        self._weights: list[Float] = [np.zeros(0)]

    def __len__(self) -> int:
        return self._size

    def append(self, codes_3C: Int, weight: Float) -> None:
        self._codes.append(codes_3C)
        self._weights.append(weight)
        self._size += len(weight)

    def joined(self) -> tuple[Int, Float]:
        return np.concatenate(self._codes, axis=1), np.concatenate(self._weights)


def _rows(positives: Positives) -> Engaged:
    sizes = np.diff(positives.offsets)
    return Engaged(
        user=np.repeat(positives.user, sizes),
        time=np.repeat(positives.time, sizes) if positives.row_time is None else positives.row_time,
        item=positives.item,
        surface=positives.surface,
    )


def _join(a: Engaged, b: Engaged) -> Engaged:
    return Engaged(
        user=np.append(a.user, b.user),
        time=np.append(a.time, b.time),
        item=np.append(a.item, b.item),
        surface=np.append(a.surface, b.surface),
    )
