"""Pairs that may be asked for next, and what the past says about each, as of a time (laws L1 and L5).

A pair is a user, an item and the surface on which the item is shown. Taken into account are, for every user who has
asked for anything within ``lookback``:

========  ==================================================================================================
own       what the user was shown or engaged with within ``lookback``, on each surface that has shown it
popular   what has been shown most of late to everybody, and to those in the user's place
========  ==================================================================================================

Shape legend: N pairs, U users, S surfaces, A candidates asked for, E engagements, F features.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydantic

from hypercast.serving.speculation.asked_log import AskedLog, AskedReader
from hypercast.serving.speculation.counts import Float, Int, Sums, decayed, find
from streaming.config import Config as BaseConfig
from streaming.errors import ConfigError
from streaming.features import DAY
from streaming.history import gather
from streaming.workspace import Workspace

LONG, SHORT = 28 * DAY, 7 * DAY
"""Time constants of what is remembered, microseconds."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """N pairs, ascending by (user, item, surface).

    Attributes:
        user_id, item_id, item, surface: int64 ``[N]``; ``item`` is a row of the item catalogue.
        feature: float32 ``[N, F]``; see :meth:`PairSource.names`.
    """

    user_id: Int
    item_id: Int
    item: Int
    surface: Int
    feature: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.user_id)

    def take(self, index: Int) -> "Pairs":
        """Those pairs, in that order."""
        return Pairs(
            **{name: getattr(self, name)[index] for name in ("user_id", "item_id", "item", "surface", "feature")}
        )


class PairSource:
    """Makes pairs as of any time. What is made as of a time never changes, whatever happens later."""

    class Config(BaseConfig):
        """Attributes:

        lookback: days of the past that are read.
        popular: items and surfaces taken into account for every user because everybody is shown them, and as many
            again because those in the user's place are.
        place: context feature that says where a request comes from, a store or a page, say; null for none.
        attributes: of items, by which a user's taste is counted; all of them if null.
        """

        lookback: float = pydantic.Field(default=84.0, gt=0)
        popular: int = pydantic.Field(default=1000, ge=1)
        place: str | None = None
        attributes: list[str] | None = None

        def build(self, workspace: Workspace) -> "PairSource":
            """For a data set.

            Raises:
                ConfigError: it has no such context feature or attribute.
            """
            return PairSource(config=self, workspace=workspace)

    def __init__(self, *, config: Config, workspace: Workspace) -> None:
        self.config = config
        self.reader = AskedReader(workspace, kept_for=2 * round(config.lookback * DAY))
        self.items, self.surfaces = len(workspace.items.ids) + 1, len(workspace.inputs.surfaces)
        self._workspace = workspace
        self._last: tuple[int, Pairs] | None = None
        self._place = _position(config.place, workspace.inputs.context, "place")
        self.attributes = workspace.items.features[1:] if config.attributes is None else config.attributes
        self._columns = [_position(name, workspace.items.features, "attributes") for name in self.attributes]

    @property
    def names(self) -> list[str]:
        """Of the features: decayed sums ``log(x + 0.05)``, ``LONG`` ones unless it says ``recent``."""
        taste = [f"user_{name}_engaged" for name in self.attributes]
        return [
            "user_asks",
            "user_asks_recent",
            "user_recency",
            "user_surface_asks",
            "shown",
            "shown_recent",
            "place_shown",
            "place_shown_recent",
            "user_item_asks",
            "user_item_engaged",
            "item_engaged",
            *taste,
        ]

    def asked(self, now: int) -> AskedLog:
        """What was asked for before ``now`` (microseconds UTC) and within ``lookback``."""
        return self.reader.between(now - round(self.config.lookback * DAY), now)

    def at(self, now: int) -> Pairs:
        """The pairs as of just before ``now``, microseconds UTC; the last ones are remembered."""
        if self._last is None or self._last[0] != now:
            self._last = now, self._made(now)
        return self._last[1]

    def _made(self, now: int) -> Pairs:
        past = _Past.of(self.asked(now), self._workspace, now=now, place=self._place, lookback=self.config.lookback)
        code = np.unique(np.concatenate(list(self._candidates(past))))
        user, shown = np.divmod(code, past.things)
        item, surface = np.divmod(shown, past.surfaces)
        pairs = Pairs(
            user_id=past.users[user],
            item_id=np.append(self._workspace.items.ids, -1)[item],
            item=item,
            surface=surface,
            feature=np.zeros((0, 0), np.float32),
        )
        columns = self._features(past, user=user, item=item, surface=surface)
        return Pairs(**{**vars(pairs), "feature": np.log(np.stack(columns, axis=1) + 0.05).astype(np.float32)})

    def _candidates(self, past: "_Past") -> Iterator[Int]:
        """Codes ``user * things + item * surfaces + surface``, repeated where there is more than one reason."""
        users = np.arange(len(past.users))
        top = past.shown.key[np.argsort(-past.shown.total, kind="stable")[: self.config.popular]]
        yield (users[:, None] * past.things + top).ravel()
        place, shown = np.divmod(past.place_shown.key, past.things)
        order = np.lexsort((-past.place_shown.total, place))
        first = np.searchsorted(place, np.arange(past.places + 1))
        chosen, offsets = gather(
            first[past.place_U], np.minimum(first[past.place_U + 1], first[past.place_U] + self.config.popular)
        )
        yield np.repeat(users, np.diff(offsets)) * past.things + shown[order[chosen]]
        yield past.user_A * past.things + past.shown_A
        own = np.unique(
            np.concatenate([past.user_A * past.items + past.item_A, past.user_E * past.items + past.item_E])
        )
        user, item = np.divmod(own, past.items)
        surface = np.tile(np.arange(past.surfaces), (len(own), 1))
        shown = item[:, None] * past.surfaces + surface
        _, is_shown = find(past.shown.key, shown.ravel())
        yield (user[:, None] * past.things + shown).ravel()[is_shown]

    def _features(self, past: "_Past", *, user: Int, item: Int, surface: Int) -> list[Float]:
        thing = item * past.surfaces + surface
        placed = past.place_U[user] * past.things + thing
        user_item = user * past.items + item
        columns = [
            past.asks.of(user),
            past.asks_recent.of(user),
            decayed(past.now - past.last_U[user], SHORT),
            past.user_surface.of(user * past.surfaces + surface),
            past.shown.of(thing),
            past.shown_recent.of(thing),
            past.place_shown.of(placed),
            past.place_shown_recent.of(placed),
            past.user_item.of(user_item),
            Sums(past.user_E * past.items + past.item_E, past.weight_E).of(user_item),
            Sums(past.item_E, past.weight_E).of(item),
        ]
        for column in self._columns:
            value = np.unique(self._workspace.items.code[:, column], return_inverse=True)[1]
            values = int(value.max()) + 1
            taste = Sums(past.user_E * values + value[past.item_E], past.weight_E)
            columns.append(taste.of(user * values + value[item]))
        return columns


@dataclass(frozen=True, kw_only=True)
class _Past:
    """The past of all users as of ``now``: users, places and items are positions, ``shown`` is item and surface."""

    now: int
    users: Int
    surfaces: int
    items: int
    places: int
    place_U: Int
    last_U: Int
    user_A: Int
    item_A: Int
    shown_A: Int
    user_E: Int
    item_E: Int
    weight_E: Float
    asks: Sums
    asks_recent: Sums
    user_surface: Sums
    shown: Sums
    shown_recent: Sums
    place_shown: Sums
    place_shown_recent: Sums
    user_item: Sums

    @property
    def things(self) -> int:
        return self.items * self.surfaces

    @staticmethod
    def of(asked: AskedLog, workspace: Workspace, *, now: int, place: int | None, lookback: float) -> "_Past":
        users, user_R = np.unique(asked.user_id, return_inverse=True)
        surfaces, items = len(workspace.inputs.surfaces), len(workspace.items.ids) + 1
        places, place_R = np.unique(
            asked.context[:, place] if place is not None else np.zeros(len(asked.time), np.int64), return_inverse=True
        )
        last = np.zeros(len(users), np.int64)
        last[user_R] = np.arange(len(user_R))  # the later ones overwrite
        owner = asked.owner
        user_A, place_A, shown_A = user_R[owner], place_R[owner], asked.item * surfaces + asked.surface
        long_R, short_R = (decayed(now - asked.time, scale) for scale in (LONG, SHORT))
        start, end = workspace.engagements.spans(users, np.full(len(users), now), max_length=_MOST)
        events = workspace.engagements.take(start, end)
        user_E = np.repeat(np.arange(len(users)), end - start)
        recent = events.time >= now - round(lookback * DAY)
        things = items * surfaces
        return _Past(
            now=now,
            users=users,
            surfaces=surfaces,
            items=items,
            places=len(places),
            place_U=place_R[last],
            last_U=asked.time[last],
            user_A=user_A,
            item_A=asked.item,
            shown_A=shown_A,
            user_E=user_E[recent],
            item_E=events.item[recent].astype(np.int64),
            weight_E=decayed(now - events.time[recent], LONG),
            asks=Sums(user_R, long_R),
            asks_recent=Sums(user_R, short_R),
            user_surface=Sums(user_A * surfaces + asked.surface, long_R[owner]),
            shown=Sums(shown_A, long_R[owner]),
            shown_recent=Sums(shown_A, short_R[owner]),
            place_shown=Sums(place_A * things + shown_A, long_R[owner]),
            place_shown_recent=Sums(place_A * things + shown_A, short_R[owner]),
            user_item=Sums(user_A * items + asked.item, long_R[owner]),
        )


_MOST = 4096
"""Engagements of a user that are looked at."""


def _position(name: str | None, names: list[str], key: str) -> int | None:
    if name is None:
        return None
    if name not in names:
        raise ConfigError(
            f"speculation.{key}: there is no {name!r}; allowed are {', '.join(names)}. Example: {names[-1:]}"
        )
    return names.index(name)
