"""A data set as messages, for rehearsals: in time order, or as disorderly as streams are.

What can be asked for is what a stream may do and still be read exactly: messages that come out of order within a bound,
and messages that come twice; and what it may not do: messages that come later than is allowed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pydantic

from streaming.config import Config as BaseConfig
from streaming.dataset import Dataset
from streaming.schema import CANDIDATE_COLUMNS, DatasetConfig, microseconds
from streaming.sources.kafka import Topics
from streaming.sources.messages import END, Kind, encode
from streaming.sources.positions import FOREVER
from streaming.sources.sink import KafkaSink

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A message and where it goes.

    Attributes:
        kind, id, time: as in :class:`streaming.sources.messages.Message`.
        partition: of its topic.
        payload: the message.
        late: whether it comes later than its window waits.
    """

    kind: Kind
    id: int
    time: int
    partition: int
    payload: bytes
    late: bool = False


class Rehearsal:
    """Turns a data set into messages."""

    class Config(BaseConfig):
        """How disorderly.

        Attributes:
            partitions: of each topic. A user's requests and engagements keep to one, and so do a request's labels.
            shuffle_within_seconds: how much later than its time a message may come; the same as the
                ``allowed_lateness_seconds`` of who reads it.
            duplicate_share: of all messages, that come twice.
            late_share: of all messages, that come after their window was closed, as far as there are any after it.
            seed: of the disorder.
        """

        partitions: int = pydantic.Field(default=2, ge=1)
        shuffle_within_seconds: float = pydantic.Field(default=0.0, ge=0)
        duplicate_share: float = pydantic.Field(default=0.0, ge=0, le=1)
        late_share: float = pydantic.Field(default=0.0, ge=0, lt=1)
        seed: int = 0

        def build(self) -> "Rehearsal":
            """A rehearsal of this kind."""
            return Rehearsal(config=self)

    def __init__(self, *, config: Config) -> None:
        self.config = config

    def arrange(self, dataset: Dataset) -> list[Sent]:
        """All messages in the order in which they are to be sent. They are all in memory."""
        messages = list(_messages(dataset, self.config.partitions))
        random = np.random.default_rng([self.config.seed, *b"rehearsal"])
        bound = round(self.config.shuffle_within_seconds * 1e6)
        time_N = np.asarray([message.time for message in messages], np.int64)

        def some_later(time: np.ndarray) -> np.ndarray:
            return time + random.integers(0, max(bound, 1), len(time))

        come_N = some_later(time_N)
        order_N = np.argsort(come_N, kind="stable")
        ends = np.asarray([window.end for window in dataset.windows])
        close_N = np.append(ends, FOREVER - bound)[np.searchsorted(ends, time_N, side="right")] + bound
        wanted_N = random.random(len(messages)) < self.config.late_share
        late = _after_which(messages, order_N, close_N, wanted_N)
        twice = np.flatnonzero(random.random(len(messages)) < self.config.duplicate_share)
        on_time = [place for place in range(len(messages)) if place not in late]
        again = [int(place) for place in twice if place not in late]
        again_come = some_later(time_N[again])
        coming = [*zip(come_N[on_time], on_time, strict=True), *zip(again_come, again, strict=True)]
        followers: dict[int, list[int]] = {}
        for place, other in late.items():
            followers.setdefault(other, []).append(place)
        sent = []
        for _, place in sorted(coming):
            sent.append(messages[place])
            sent += [replace(messages[other], late=True) for other in followers.pop(place, [])]
        return sent


def send(messages: Iterable[Sent], *, to: KafkaSink, topics: Topics, partitions: int) -> None:
    """Send ``messages`` in their order, then an end marker in every partition, and wait until all have arrived."""
    topic_of = {kind: topic for topic, kind in topics.kinds().items()}
    for message in messages:
        to.put(topic_of[message.kind], message.partition, message.payload)
    for topic in topics.names():
        for partition in range(partitions):
            to.put(topic, partition, END)
    to.flush()


def _after_which(
    messages: list[Sent], order_N: np.ndarray, close_N: np.ndarray, wanted_N: np.ndarray
) -> dict[int, int]:
    """Which message each of those ``wanted`` late is to follow: one by which its partition's clock passes ``close``.

    Those for which there is none stay out: they cannot be late.
    """
    waiting: dict[tuple[Kind, int], list[int]] = {}
    for place in np.flatnonzero(wanted_N):
        waiting.setdefault((messages[place].kind, messages[place].partition), []).append(int(place))
    late = {}
    for place in order_N[~wanted_N[order_N]]:
        held = waiting.get((messages[place].kind, messages[place].partition), [])
        for one in [one for one in held if messages[place].time >= close_N[one]]:
            late[one] = int(place)
            held.remove(one)
    return late


def _messages(dataset: Dataset, partitions: int) -> Iterator[Sent]:
    """Everything in the logs, window by window."""
    engagement_id = 0
    for window in dataset.windows:
        for row in dataset.engagements(window.index).to_pylist():
            row["time"] = microseconds(row["time"])
            yield _sent("engagement", row["user_id"] % partitions, {"engagement_id": engagement_id, **row})
            engagement_id += 1
        for row in dataset.requests(window.index).to_pylist():
            request, later = _request(dataset.config, row)
            yield _sent("request", row["user_id"] % partitions, request)
            for time, labels in sorted(later.items()):
                what = {"request_id": row["request_id"], "request_time": request["time"], "time": time}
                yield _sent("labels", row["request_id"] % partitions, {**what, "labels": labels})


def _request(config: DatasetConfig, row: Row) -> tuple[Row, dict[int, list[list[Any]]]]:
    """A request's message, and by time the labels that became known after it."""
    time, supervision = microseconds(row["time"]), row["supervision"]
    label: dict[str, list[Any]] = {}
    label_time: dict[str, list[int | None]] = {}
    later: dict[int, list[list[Any]]] = {}
    for task in config.tasks:
        values = supervision[f"label_{task.name}"]
        times = [None if known is None else microseconds(known) for known in supervision[f"label_time_{task.name}"]]
        at_once = [known == time for known in times]
        label[task.name] = [value if now else None for value, now in zip(values, at_once, strict=True)]
        label_time[task.name] = [time if now else None for now in at_once]
        for candidate, value, known in zip(row["candidate_id"], values, times, strict=True):
            if known is not None and known > time:
                later.setdefault(known, []).append([candidate, task.name, value])
    request = {
        **{name: row[name] for name in ("request_id", "user_id")},
        "time": time,
        "context": {name: row[name] for name in config.context},
        "tags": {name: row[f"tag_{name}"] for name in config.tags},
        **{name: row[name] for name in CANDIDATE_COLUMNS},
        "label": label,
        "label_time": label_time,
        **{name: supervision[name] for name in ("weight", "stratum")},
    }
    return request, later


def _sent(kind: Kind, partition: int, row: Row) -> Sent:
    name = "engagement_id" if kind == "engagement" else "request_id"
    return Sent(kind=kind, id=row[name], time=row["time"], partition=partition, payload=encode(kind, row))
