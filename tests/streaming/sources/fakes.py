"""A stream in memory: partitions as lists, read in any interleaving."""

import random
from collections.abc import Iterable, Mapping

from streaming.sources.kafka import Record, Topics
from streaming.sources.messages import END
from streaming.sources.positions import Partition
from streaming.sources.replay import Sent

Logs = dict[Partition, list[bytes]]


def logs_of(sent: Iterable[Sent], *, partitions: int, end: bool = True) -> Logs:
    """What the partitions hold once ``sent`` has been sent, in the topics that have the usual names."""
    topics = Topics()
    topic_of = {kind: topic for topic, kind in topics.kinds().items()}
    logs: Logs = {Partition(topic, index): [] for topic in topics.names() for index in range(partitions)}
    for message in sent:
        logs[Partition(topic_of[message.kind], message.partition)].append(message.payload)
    if end:
        for log in logs.values():
            log.append(END)
    return logs


class FakeReader:
    """Gives what ``logs`` hold, partitions taking turns at random; says where one ends as Kafka does.

    Args:
        stop_after: raise KeyboardInterrupt after so many messages; None never does.
    """

    waiting = False

    def __init__(self, logs: Mapping[Partition, list[bytes]], *, seed: int = 0, stop_after: int | None = None) -> None:
        self.logs = dict(logs)
        self.started: dict[Partition, int | None] = {}
        self.given = 0
        self._at: dict[Partition, int] = {}
        self._told: set[Partition] = set()
        self._random = random.Random(seed)
        self._left = stop_after

    def partitions(self, topics: list[str]) -> list[Partition]:
        return [each for each in self.logs if each.topic in topics]

    def start(self, offsets: dict[Partition, int | None]) -> None:
        self.started = offsets
        self._at = {each: offset or 0 for each, offset in offsets.items()}

    def poll(self) -> list[Record]:
        partition = self._random.choice(list(self._at))
        at, log = self._at[partition], self.logs[partition]
        if at == len(log):
            again = partition in self._told
            self._told.add(partition)
            return [] if again else [Record(partition=partition, offset=at, end=True)]
        stop = min(len(log), at + self._random.randint(1, 20))
        records = [Record(partition=partition, offset=offset, payload=log[offset]) for offset in range(at, stop)]
        self._at[partition] = stop
        self._told.discard(partition)
        self.given += len(records)
        if self._left is not None and self.given >= self._left:
            raise KeyboardInterrupt
        return records

    def close(self) -> None:
        self._at = {}
