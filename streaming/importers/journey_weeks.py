"""The Complete Journey week by week: what was promoted, who bought what of it, and the candidates drawn from it."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streaming.features import DenseFeatures, Engagements, ItemGroups, codes
from streaming.importers.draws import Pool
from streaming.importers.journey_source import LOCAL_TIME, SURFACES, WEEKS, Lines, Promotions
from streaming.importers.tables import Labels, Requests, engagement_table, request_table
from streaming.schema import DatasetConfig

POPULARITY_WEEKS = 4
SPLIT_TRIP = 600_000_000  # microseconds: ten minutes

Int = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What all stores promoted in one week, sorted by (store, item) [P]."""

    key: Int  # store * items + item
    item: Int
    surface: Int
    first: Int  # the pool of store s is at [first[s], first[s + 1])

    def find(self, key: Int) -> Int:
        """Position of each key, -1 where it was not promoted."""
        position = np.searchsorted(self.key, key)
        found = np.append(self.key, -1)[position] == key
        return np.where(found, position, -1)


@dataclass(frozen=True, kw_only=True)
class _Candidates:
    """Candidates of B requests, C in all: a line of each request [B], numbers of candidates [B], and per candidate [C]
    its place in the offer, the quantity bought, its stratum and its weight.
    """

    line: Int
    sizes: Int
    place: Int
    quantity: Int
    stratum: Int
    weight: npt.NDArray[np.float64]


class Weeks:
    """Builds the parts of one week after another. Items, users and stores are codes: positions in their sorted ids."""

    def __init__(
        self, *, seed: int, user_share: float, lines: Lines, promotions: Promotions, items: pa.Table, users: pa.Table
    ) -> None:
        self._seed = seed
        self._lines = lines
        self._promotions = promotions
        self._item_ids = items["item_id"].to_numpy()
        self._user_ids = users["user_id"].to_numpy()
        self._store_ids = np.unique(np.concatenate([np.unique(lines.store), np.unique(promotions.store)]))
        self._item = np.searchsorted(self._item_ids, lines.product_id)
        self._user = np.searchsorted(self._user_ids, lines.user_id)
        self._store = np.searchsorted(self._store_ids, lines.store)
        self._kept = np.array([_below_share(user, user_share) for user in self._user_ids.tolist()])
        items_and_weeks = lines.week * len(self._item_ids) + self._item
        self._purchases = np.bincount(items_and_weeks, minlength=(WEEKS + 1) * len(self._item_ids)).reshape(
            WEEKS + 1, -1
        )
        self._split_trip = _split_trips(lines)
        self._surface = self._surfaces()
        self._features = DenseFeatures(
            engagements=Engagements(user=self._user, item=self._item, surface=self._surface, time=lines.time),
            groups=ItemGroups(
                category=codes(items["category"]), type=codes(items["type"]), department=codes(items["department"])
            ),
        )

    def build(self, week: int, config: DatasetConfig) -> tuple[pa.Table, pa.Table]:
        """The request part and the engagement part of one week."""
        offer = self._offer(week)
        rows = np.flatnonzero((self._lines.week == week) & self._kept[self._user])
        place = self._place(offer, rows)
        return self._requests(week, config, offer, rows, place), self._engagements(config, rows)

    def _place(self, offer: Offer, rows: Int) -> Int:
        """Position in the offer of what each line bought in its store, -1 where that was not promoted."""
        return offer.find(self._store[rows] * len(self._item_ids) + self._item[rows])

    def _surfaces(self) -> Int:
        """The surface on which each line's store promoted what was bought, -1 for none [E]."""
        surface = np.full(len(self._item), -1)
        for week in np.unique(self._lines.week).tolist():
            offer, rows = self._offer(week), np.flatnonzero(self._lines.week == week)
            surface[rows] = np.append(offer.surface, -1)[self._place(offer, rows)]
        return surface

    def _offer(self, week: int) -> Offer:
        promotions, items = self._promotions, len(self._item_ids)
        part = slice(promotions.first[week], promotions.first[week + 1])
        store = np.searchsorted(self._store_ids, promotions.store[part])
        item = np.searchsorted(self._item_ids, promotions.product_id[part])
        # One number orders by (store, item, surface), so the first of each (store, item) has its first surface.
        packed = np.sort((store * items + item) * len(SURFACES) + promotions.surface[part])
        key, first = np.unique(packed // len(SURFACES), return_index=True)
        return Offer(
            key=key,
            item=key % items,
            surface=packed[first] % len(SURFACES),
            first=np.searchsorted(key, np.arange(len(self._store_ids) + 1) * items),
        )

    def _engagements(self, config: DatasetConfig, rows: Int) -> pa.Table:
        lines = self._lines.select(rows)
        return engagement_table(
            config,
            user_id=lines.user_id,
            time=lines.time,
            item_id=lines.product_id,
            surface=self._surface[rows],
            action=(lines.quantity >= 2).astype(np.int8),
            quantity=lines.quantity,
        )

    def _requests(self, week: int, config: DatasetConfig, offer: Offer, rows: Int, place: Int) -> pa.Table:
        lines = self._lines.select(rows)
        drawn = self._draw(week, offer, lines, self._store[rows], place)
        line, quantity = drawn.line, drawn.quantity
        item, surface = offer.item[drawn.place], offer.surface[drawn.place]
        time = np.repeat(lines.time[line], drawn.sizes)
        promoting = np.bincount(offer.item, minlength=len(self._item_ids))
        dense = self._features.at(
            user=np.repeat(self._user[rows[line]], drawn.sizes),
            item=item,
            surface=surface,
            time=time,
            stores_promoting=promoting[item],
        )
        local = pa.array(lines.time[line]).cast(pa.timestamp("us", tz=LOCAL_TIME.key))
        requests = Requests(
            request_id=lines.basket[line],
            user_id=lines.user_id[line],
            time=lines.time[line],
            context={
                "store": lines.store[line],
                "weekday": pc.call_function("day_of_week", [local]).to_numpy(),
                "hour": pc.call_function("hour", [local]).to_numpy(),
            },
            tags={"split_trip": self._split_trip[rows[line]]},
            offsets=np.concatenate([[0], np.cumsum(drawn.sizes)]),
            item_id=self._item_ids[item],
            surface=surface,
            dense=dense,
            labels={
                "purchase": Labels(value=quantity > 0, time=time, known=np.ones(len(item), dtype=bool)),
                "multiple": Labels(value=quantity >= 2, time=time, known=quantity > 0),
            },
            weight=drawn.weight,
            stratum=drawn.stratum,
        )
        return request_table(config, requests)

    def _draw(self, week: int, offer: Offer, lines: Lines, store: Int, place: Int) -> _Candidates:
        """Candidates of each basket whose store promoted something, in the order of (time, basket)."""
        _, one, basket = np.unique(lines.basket, return_index=True, return_inverse=True)
        basket_of_pair, place_of_pair, quantity_of_pair = _bought(basket, place, lines.quantity)
        first_pair = np.searchsorted(basket_of_pair, np.arange(len(one) + 1))
        order = np.lexsort((lines.basket[one], lines.time[one]))
        order = order[np.diff(offer.first)[store[one[order]]] > 0]

        pools = self._pools(week, offer)
        quantity_at = np.zeros(len(offer.key), dtype=np.int64)
        places, quantities, strata, weights = [], [], [], []
        for index in order.tolist():
            pairs = slice(first_pair[index], first_pair[index + 1])
            at = int(store[one[index]])
            start = offer.first[at]
            # A generator of its own, so that a basket's draws do not depend on which other baskets are imported.
            random = np.random.default_rng([self._seed, int(lines.basket[one[index]])])
            drawn = pools(at).draw(random, place_of_pair[pairs] - start)
            quantity_at[place_of_pair[pairs]] = quantity_of_pair[pairs]
            places.append(drawn.position + start)
            quantities.append(quantity_at[places[-1]])
            strata.append(drawn.stratum)
            weights.append(drawn.weight)
            quantity_at[place_of_pair[pairs]] = 0
        return _Candidates(
            line=one[order],
            sizes=np.array([len(part) for part in places], dtype=np.int64),
            place=_join(places),
            quantity=_join(quantities),
            stratum=_join(strata),
            weight=_join(weights),
        )

    def _pools(self, week: int, offer: Offer) -> Callable[[int], Pool]:
        recent = self._purchases[max(0, week - POPULARITY_WEEKS) : week].sum(axis=0).astype(np.float64)
        built: dict[int, Pool] = {}

        def pool(store: int) -> Pool:
            if store not in built:
                part = slice(offer.first[store], offer.first[store + 1])
                built[store] = Pool(popularity=recent[offer.item[part]])
            return built[store]

        return pool


def _bought(basket: Int, place: Int, quantity: Int) -> tuple[Int, Int, Int]:
    """Basket, place in the offer and summed quantity of each promoted product bought, sorted by (basket, place)."""
    rows = np.flatnonzero((place >= 0) & (quantity > 0))
    width = int(place.max(initial=0)) + 1
    pair, inverse = np.unique(basket[rows] * width + place[rows], return_inverse=True)
    total = np.bincount(inverse, weights=quantity[rows], minlength=len(pair)).astype(np.int64)
    return pair // width, pair % width, total


def _split_trips(lines: Lines) -> npt.NDArray[np.bool_]:
    """Whether a line's basket starts within ten minutes of its household's basket before [E]."""
    _, one, basket = np.unique(lines.basket, return_index=True, return_inverse=True)
    user, time = lines.user_id[one], lines.time[one]
    order = np.lexsort((one, time, user))
    soon = (np.diff(user[order]) == 0) & (np.diff(time[order]) <= SPLIT_TRIP)
    split = np.zeros(len(one), dtype=bool)
    split[order[1:]] = soon
    return split[basket]


def _below_share(user_id: int, share: float) -> bool:
    digest = hashlib.blake2b(f"complete journey user share/{user_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _join(parts: Sequence[npt.NDArray]) -> npt.NDArray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
