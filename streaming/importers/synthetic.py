"""A tiny data set with a known structure: for tests and first steps, made in well under a second.

Each user prefers two of six categories, buys offered items of those with probability 0.6 and others with 0.05, and
buys more of them between offers. So a history tells what its user will buy, and nothing else does. A third of the users
buy two or more at a time with probability 0.7, the others with 0.1.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pydantic

from streaming.config import Config as BaseConfig
from streaming.dataset import Dataset
from streaming.features import DENSE, DenseFeatures, Engagements, ItemGroups, codes
from streaming.importers.tables import Labels, Requests, engagement_table, request_table
from streaming.schema import DatasetConfig, TaskConfig, microseconds
from streaming.writer import DatasetWriter, write_dataset

START = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
CATEGORIES = 6
STORES = 4
PURCHASES_BETWEEN = 4  # per user and window, on no surface
FIRST_ITEM, FIRST_USER = 1000, 100  # ids are not positions: a reader that mixes them up must fail

Int = npt.NDArray[np.int64]


class Synthetic:
    """Importer of the synthetic data set.

    >>> Synthetic.Config(seed=1).build(Path("data/synthetic"))
    """

    class Config(BaseConfig):
        """What to make.

        Attributes:
            candidates: Candidates of each request.
            label_delay_seconds: How long after its request a label becomes known.
        """

        seed: int = 0
        users: int = pydantic.Field(default=40, ge=1)
        items: int = pydantic.Field(default=60, ge=CATEGORIES)
        windows: int = pydantic.Field(default=6, ge=1)
        requests_per_user_per_window: int = pydantic.Field(default=2, ge=1)
        candidates: int = pydantic.Field(default=8, ge=1)
        surfaces: int = pydantic.Field(default=3, ge=1)
        label_delay_seconds: float = pydantic.Field(default=0.0, ge=0.0)

        @pydantic.model_validator(mode="after")
        def _enough_items(self) -> "Synthetic.Config":
            if self.candidates > self.items:
                raise ValueError(f"candidates must be at most items ({self.items}); got {self.candidates}")
            return self

        def build(self, out: Path, progress: Callable[[str, float], None] | None = None) -> Dataset:
            """Write the data set to the new folder ``out``."""
            return Synthetic(config=self).build(out, progress)

    def __init__(self, *, config: "Synthetic.Config") -> None:
        self.config = config

    def build(self, out: Path, progress: Callable[[str, float], None] | None = None) -> Dataset:
        """Write the data set to the new folder ``out``.

        Raises:
            DataError: ``out`` exists already.
        """
        dataset = write_dataset(out, self._dataset_config(), self._fill)
        if progress is not None:
            progress("synthetic data set", 1.0)
        return dataset

    def _dataset_config(self) -> DatasetConfig:
        delay = self.config.label_delay_seconds
        return DatasetConfig(
            name="synthetic",
            description="Users with fixed preferences over item categories; made for tests.",
            provenance=f"streaming.importers.synthetic, {self.config!r}",
            licence="CC0-1.0",
            surfaces=[f"surface_{index}" for index in range(self.config.surfaces)],
            actions=["purchase", "purchase_multiple"],
            tasks=[
                TaskConfig(name="purchase", delay_seconds=delay),
                TaskConfig(name="multiple", given="purchase", delay_seconds=delay),
            ],
            dense=list(DENSE),
            item_attributes=["category", "department", "brand", "type"],
            user_attributes=["age"],
            context=["store", "weekday", "hour"],
            tags=["split_trip"],
            first_window=1,
            window_boundaries=[START + index * WEEK for index in range(self.config.windows + 1)],
        )

    def _fill(self, writer: DatasetWriter) -> None:
        config, random = self.config, np.random.default_rng(self.config.seed)
        item = np.arange(config.items)
        category = item % CATEGORIES
        items = pa.table(
            {
                "item_id": FIRST_ITEM + item,
                "category": [f"category {c}" for c in category],
                "department": [f"department {c // 2}" for c in category],
                "brand": [("National", "Private")[i // CATEGORIES % 2] for i in item],
                "type": [f"type {c}.{i % 3}" if i % 10 else None for i, c in enumerate(category)],
            }
        )
        age = random.choice(["19-24", "25-34", "35-44", "65+"], config.users)
        users = pa.table(
            {
                "user_id": FIRST_USER + np.arange(config.users),
                "age": pa.array(age, mask=random.random(config.users) < 0.5),
            }
        )
        writer.items(items)
        writer.users(users)
        prefers = np.argsort(random.random((config.users, CATEGORIES)), axis=1)[:, :2]
        multiple = np.where(np.arange(config.users) % 3 == 0, 0.7, 0.1)

        log = self._shown(random, category, prefers, multiple)
        between = self._between(random, category, prefers, multiple)
        bought = log["quantity"] > 0
        request = log["request"]
        user = np.concatenate([log["user"][request][bought], between["user"]])
        bought_item = np.concatenate([log["item"][bought], between["item"]])
        time = np.concatenate([log["time"][request][bought], between["time"]])
        surface = np.concatenate([log["surface"][bought], np.full(len(between["user"]), -1)])
        quantity = np.concatenate([log["quantity"][bought], between["quantity"]])

        features = DenseFeatures(
            engagements=Engagements(user=user, item=bought_item, surface=surface, time=time),
            groups=ItemGroups(
                category=codes(items["category"]), type=codes(items["type"]), department=codes(items["department"])
            ),
        )
        dense = features.at(
            user=log["user"][request],
            item=log["item"],
            surface=log["surface"],
            time=log["time"][request],
            stores_promoting=np.full(len(request), STORES),
        )
        for index, start, end in self._windows():
            inside = (time >= start) & (time < end)
            writer.engagements(
                index,
                engagement_table(
                    writer.config,
                    user_id=FIRST_USER + user[inside],
                    time=time[inside],
                    item_id=FIRST_ITEM + bought_item[inside],
                    surface=surface[inside],
                    action=(quantity[inside] >= 2).astype(np.int64),
                    quantity=quantity[inside],
                ),
            )
            writer.requests(index, self._requests(writer.config, log, dense, start, end))

    def _windows(self) -> list[tuple[int, int, int]]:
        start, week = microseconds(START), WEEK // timedelta(microseconds=1)
        return [(1 + w, start + w * week, start + (w + 1) * week) for w in range(self.config.windows)]

    def _times(self, random: np.random.Generator, per_user_and_window: int) -> tuple[Int, Int]:
        """User [N] and time [N] of events spread evenly at random, whole seconds."""
        config = self.config
        user = np.tile(np.arange(config.users), config.windows * per_user_and_window)
        week = np.repeat(np.arange(config.windows), config.users * per_user_and_window)
        seconds = week * WEEK.total_seconds() + random.integers(0, int(WEEK.total_seconds()), len(user))
        return user, microseconds(START) + seconds.astype(np.int64) * 1_000_000

    def _shown(
        self, random: np.random.Generator, category: Int, prefers: Int, multiple: npt.NDArray[np.float64]
    ) -> dict[str, Int]:
        """Requests in order of time (user, time, store [B]) and their candidates (request, item, ... [C])."""
        user, time = self._times(random, self.config.requests_per_user_per_window)
        order = np.argsort(time, kind="stable")
        user, time = user[order], time[order]
        shape = (len(user), self.config.candidates)
        item = np.argsort(random.random((len(user), self.config.items)), axis=1)[:, : shape[1]]
        liked = (category[item][:, :, None] == prefers[user][:, None, :]).any(axis=2)
        bought = random.random(shape) < np.where(liked, 0.6, 0.05)
        quantity = bought * (1 + (random.random(shape) < multiple[user][:, None]))
        return {
            "user": user,
            "time": time,
            "store": random.integers(0, STORES, len(user)),
            "request": np.repeat(np.arange(len(user)), shape[1]),
            "item": item.reshape(-1),
            "quantity": quantity.reshape(-1),
            "surface": random.integers(0, self.config.surfaces, shape).reshape(-1),
        }

    def _between(
        self, random: np.random.Generator, category: Int, prefers: Int, multiple: npt.NDArray[np.float64]
    ) -> dict[str, Int]:
        """Purchases of preferred categories on no surface: user, time, item, quantity [E]."""
        user, time = self._times(random, PURCHASES_BETWEEN)
        wanted = prefers[user, random.integers(0, 2, len(user))]
        score = random.random((len(user), len(category))) + (category[None, :] == wanted[:, None])
        quantity = 1 + (random.random(len(user)) < multiple[user])
        return {"user": user, "time": time, "item": score.argmax(axis=1), "quantity": quantity}

    def _requests(
        self, config: DatasetConfig, log: dict[str, Int], dense: npt.NDArray[np.float32], start: int, end: int
    ) -> pa.Table:
        rows = np.flatnonzero((log["time"] >= start) & (log["time"] < end))
        width = self.config.candidates
        cells = (rows[:, None] * width + np.arange(width)).reshape(-1)
        time = log["time"][rows]
        hours = (time - microseconds(START)) // 3_600_000_000
        previous = _previous_time(log["user"], log["time"])[rows]
        quantity = log["quantity"][cells]
        label_time = np.repeat(time, width) + int(self.config.label_delay_seconds * 1e6)
        bought = quantity > 0
        requests = Requests(
            request_id=rows,
            user_id=FIRST_USER + log["user"][rows],
            time=time,
            context={"store": log["store"][rows], "weekday": hours // 24 % 7, "hour": hours % 24},
            tags={"split_trip": time - previous <= 600_000_000},
            offsets=np.arange(len(rows) + 1) * width,
            item_id=FIRST_ITEM + log["item"][cells],
            surface=log["surface"][cells],
            dense=dense[cells],
            labels={
                "purchase": Labels(value=bought, time=label_time, known=np.ones(len(cells), bool)),
                "multiple": Labels(value=quantity >= 2, time=label_time, known=bought),
            },
            weight=np.ones(len(cells)),
            stratum=np.where(bought, 0, 1),
        )
        return request_table(config, requests)


def _previous_time(user: Int, time: Int) -> Int:
    """Time of the same user's previous request [B], 0 for the first one."""
    order = np.lexsort((time, user))
    previous = np.zeros_like(time)
    same = user[order][1:] == user[order][:-1]
    previous[order[1:]] = np.where(same, time[order][:-1], 0)
    return previous
