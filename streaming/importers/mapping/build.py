"""Windows of a data set from what was prepared, one after another, each sorted on its own.

Legend: n rows, B requests, C candidates, E engagements, T tasks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streaming.features import codes
from streaming.importers.mapping.as_of import AsOfFeatures, Events
from streaming.importers.mapping.columns import Int
from streaming.importers.mapping.config import MappingConfig
from streaming.importers.mapping.grouping import Grouping, group, mixed
from streaming.importers.mapping.negatives import Engaged, Positives
from streaming.importers.mapping.prepare import DAY, HOUR, Prepared
from streaming.importers.tables import Labels, Requests, engagement_table, request_table
from streaming.schema import DatasetConfig

Columns = dict[str, np.ndarray]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """Candidates of a window's requests.

    Attributes:
        offsets: candidates of request b are at [offsets[b], offsets[b + 1]) [B + 1].
        row: the row that each one is, or -1 where it was drawn [C].
        item, surface, weight, stratum: [C].
    """

    offsets: Int
    row: Int
    item: Int
    surface: Int
    weight: npt.NDArray
    stratum: Int


class Windows:
    """Request and engagement parts of one window after another.

    Attributes:
        item_ids, user_ids: all ids, ascending.
        outside: positives that were no candidates, as they were in no pool that negatives are drawn from.
    """

    def __init__(self, *, config: MappingConfig, dataset: DatasetConfig, prepared: Prepared) -> None:
        self.item_ids, self.user_ids = prepared.items.codes(), prepared.users.codes()
        self.item_attributes = prepared.item_attributes.of(self.item_ids)
        self.user_attributes = prepared.user_attributes.of(self.user_ids)
        self.outside = 0
        self._config, self._dataset, self._prepared = config, dataset, prepared
        self._tasks = [task.name for task in config.tasks]
        self._place = prepared.surfaces.order()
        surfaces = len(dataset.surfaces)
        self._negatives = config.negatives.build(seed=config.seed, surfaces=surfaces) if config.negatives else None
        self._features = None
        if config.with_as_of_features:
            groups = {name: codes(pa.chunked_array(values)) for name, values in self.item_attributes.items()}
            self._features = AsOfFeatures(items=len(self.item_ids), attributes=groups, surfaces=surfaces)

    def build(self, window: int) -> tuple[pa.Table, pa.Table]:
        """The window's requests and engagements. Windows must come in order, each once."""
        rows = self._prepared.rows.window(window)
        engaged = _arrays(self._prepared.engaged.window(window))
        engaged["surface"] = self._place[engaged["surface"]]
        events = engagement_table(
            self._dataset,
            user_id=engaged["user"],
            time=engaged["time"],
            item_id=engaged["item"],
            surface=engaged["surface"],
            action=engaged["action"],
            quantity=engaged["quantity"],
        )
        return self._requests(rows, engaged), events

    def _requests(self, table: pa.Table, engaged: Columns) -> pa.Table:
        texts = {name: table[f"context_{number}"] for number, name in enumerate(self._config.context)}
        rows = _arrays(table.drop_columns([f"context_{number}" for number in range(len(texts))]))
        rows["surface"] = self._place[rows["surface"]]
        grouping = group(
            user=rows["user"], time=rows["time"], request=rows["request"], within=self._config.requests.within
        )
        chosen = self._shuffled(grouping, rows) if self._negatives is None else self._drawn(grouping, rows, engaged)
        kept = np.flatnonzero(np.diff(chosen.offsets) > 0)
        owner = np.repeat(np.arange(len(grouping.time)), np.diff(chosen.offsets))
        time = grouping.time[owner]
        requests = Requests(
            request_id=grouping.request_id[kept],
            user_id=grouping.user[kept],
            time=grouping.time[kept],
            context={**{name: np.zeros(len(kept), np.int64) for name in texts}, **self._clock(grouping.time[kept])},
            tags={},
            offsets=np.append(0, chosen.offsets[kept + 1]),
            item_id=chosen.item,
            surface=chosen.surface,
            dense=self._dense(rows, engaged, chosen, user=grouping.user[owner], time=time),
            labels={task: self._labels(number, rows, chosen, time) for number, task in enumerate(self._tasks)},
            weight=chosen.weight,
            stratum=chosen.stratum,
        )
        result = request_table(self._dataset, requests)
        for name, text in texts.items():
            values = text.take(pa.array(grouping.first[kept]))
            result = result.set_column(result.schema.get_field_index(name), name, values)
        return result

    def _shuffled(self, grouping: Grouping, rows: Columns) -> _Chosen:
        """Every row is a candidate; their order within a request is random but the same in every import."""
        sizes = np.diff(grouping.offsets)
        owner = np.repeat(np.arange(len(sizes)), sizes)
        place = np.arange(len(owner)) - np.repeat(grouping.offsets[:-1], sizes)
        seed = np.full(len(owner), self._config.seed)
        order = np.lexsort((mixed(seed, grouping.request_id[owner], place), owner))
        row = grouping.rows[order]
        return _Chosen(
            offsets=grouping.offsets,
            row=row,
            item=rows["item"][row],
            surface=rows["surface"][row],
            weight=rows["weight"][row],
            stratum=np.zeros(len(row), dtype=np.int64),
        )

    def _drawn(self, grouping: Grouping, rows: Columns, engaged: Columns) -> _Chosen:
        """Rows are what was taken; what else could have been is drawn beside them."""
        if self._negatives is None:
            raise ValueError("no negatives are configured")
        drawn = self._negatives.window(
            Positives(
                request_id=grouping.request_id,
                user=grouping.user,
                time=grouping.time,
                offsets=grouping.offsets,
                item=rows["item"][grouping.rows],
                surface=rows["surface"][grouping.rows],
                row_time=rows["time"][grouping.rows],
            ),
            Engaged(user=engaged["user"], time=engaged["time"], item=engaged["item"], surface=engaged["surface"]),
        )
        self.outside += drawn.outside
        return _Chosen(
            offsets=drawn.offsets,
            row=np.where(drawn.row >= 0, np.append(grouping.rows, -1)[drawn.row], -1),
            item=drawn.item,
            surface=drawn.surface,
            weight=drawn.weight,
            stratum=drawn.stratum,
        )

    def _labels(self, number: int, rows: Columns, chosen: _Chosen, time: Int) -> Labels:
        task = self._config.tasks[number]
        value = np.append(rows[f"label_{number}"], np.nan)[chosen.row]
        known_at = np.append(rows[f"known_{number}"], 0)[chosen.row]
        drawn = chosen.row < 0
        # What was not taken has label 0, known as late as a label without a time of its own; 0 of nothing is unknown.
        value = np.where(drawn & (task.given is None), 0.0, value)
        known_at = np.where(drawn, time + round(task.delay_seconds * 1e6), known_at)
        return Labels(value=value, time=known_at, known=~np.isnan(value))

    def _dense(self, rows: Columns, engaged: Columns, chosen: _Chosen, *, user: Int, time: Int) -> Float32:
        parts = [np.zeros((len(time), 0), np.float32)]
        parts += [rows[f"dense_{number}"][chosen.row][:, None] for number in range(len(self._config.dense))]
        if self._features is not None:
            asked = self._events(user, chosen.item, chosen.surface, time)
            past = self._events(engaged["user"], engaged["item"], engaged["surface"], engaged["time"])
            parts.append(self._features.window(past, asked))
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def _events(self, user: Int, item: Int, surface: Int, time: Int) -> Events:
        return Events(
            user=np.searchsorted(self.user_ids, user),
            item=np.searchsorted(self.item_ids, item),
            surface=surface.astype(np.int64),
            time=time,
        )

    def _clock(self, time: Int) -> dict[str, Int]:
        # 1970-01-01 was a Thursday; weekdays count from Monday, 0.
        parts = {"hour": time // HOUR % 24, "weekday": (time // DAY + 3) % 7}
        return {name: parts[name] for name in self._config.clock}


def _arrays(table: pa.Table) -> Columns:
    return {name: table[name].to_numpy() for name in table.column_names}
