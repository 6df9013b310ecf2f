"""The feature state follows the platform's own stream: the topic of engagements that training reads, from where the
windows end that the state began with.

As with training, partitions are assigned, nothing is committed and no group is joined (:mod:`streaming.sources.kafka`),
so that any number of services read the same topic without taking from each other or from the trainer. Where to begin is
what was recorded when the last of the windows was sealed. A broker that does not answer is waited for; one that refuses
is asked again, and what it said is told. Meanwhile the service answers from what it knows.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hypercast.serving.features.admission import Admission
from hypercast.serving.logs.intake import COLUMNS, Observer
from hypercast.serving.metrics import Metrics
from streaming.dataset import Dataset
from streaming.errors import UserError
from streaming.sources.kafka import KafkaReader, Record
from streaming.sources.positions import Partition
from streaming.sources.sealed import Sealed
from streaming.sources.source import Reader, StreamConfig

_logger = logging.getLogger(__name__)

AGAIN_SECONDS = 5.0
"""After which a broker that refused is asked again."""
AT_ONCE = 64
"""Engagements that are observed in one go: meanwhile questions wait."""
CLOSE_SECONDS = 10.0
"""For which a reader that is in the middle of asking the broker is waited for at the end."""


@dataclass(frozen=True, kw_only=True)
class Tail:
    """What comes after the windows that a data set holds.

    Attributes:
        config: of the stream.
        catalogue: the data set that is to come, as training has it.
        sealed: the record of the last window that the data set holds.
    """

    config: StreamConfig
    catalogue: Dataset
    sealed: Sealed

    def open(self) -> Reader:
        """A reader, which does not ask the broker yet.

        Raises:
            ConfigError: there is no Kafka client, or it refuses a setting.
        """
        return KafkaReader(bootstrap_servers=self.config.bootstrap_servers, settings=self.config.client)

    def follow(self, *, state: Observer, metrics: Metrics) -> "Follower":
        """Let ``state``, which knows the data set, observe what comes after it.

        Raises:
            ConfigError: see :meth:`open`.
        """
        return Follower(tail=self, state=state, metrics=metrics, open_reader=self.open)


class Follower:
    """Reads in a thread of its own until it is closed. Built by :meth:`Tail.follow`."""

    def __init__(self, *, tail: Tail, state: Observer, metrics: Metrics, open_reader: Callable[[], Reader]) -> None:
        self.topic = tail.config.topics.engagements
        self._state, self._metrics, self._open = state, metrics, open_reader
        begin = {each: position for each, position in tail.sealed.positions.items() if each.topic == self.topic}
        since = tail.catalogue.window(tail.sealed.window).end
        self._admission = Admission(config=tail.config, catalogue=tail.catalogue, since=since, positions=begin)
        self._next: dict[Partition, int | None] = {each: position.offset for each, position in begin.items()}
        self._admitted: list[dict[str, Any]] = []  # and not observed yet
        self._at_end: set[Partition] = set()
        self._produced: dict[Partition, float] = {}
        self._known_until = since / 1e6
        self._told_bad = False
        self.caught_up = False
        """Whether all partitions have once been read to the end that they had then."""
        self.refused: str | None = None
        """What the broker says that refuses; None while it does not."""
        metrics.stream_behind.labels(self.topic).set_function(self.behind_seconds)
        reader = open_reader()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(reader,), name="follower", daemon=True)
        self._thread.start()

    def behind_seconds(self) -> float:
        """How long ago everything was known that had been produced by then; what is on its way is not counted.

        Before any message has come that says when it was produced: since the end of the data set's windows.
        """
        return max(0.0, time.time() - self._known_until)

    def describe(self) -> dict[str, Any]:
        """For ``/healthz``, which needs no token: nothing of where the broker is."""
        return {
            "caught_up": self.caught_up,
            "behind_seconds": round(self.behind_seconds(), 3),
            "refused": self.refused is not None,
        }

    def close(self) -> None:
        """Stop reading."""
        self._ended.set()
        self._thread.join(CLOSE_SECONDS)

    def _run(self, first: Reader) -> None:
        opened = [first]
        while not self._ended.is_set():
            try:
                with contextlib.closing(opened.pop() if opened else self._open()) as reader:
                    self._follow(reader)
            except Exception as error:  # the service goes on with what it knows
                self._tell(error)
                self._ended.wait(AGAIN_SECONDS)

    def _tell(self, error: Exception) -> None:
        if isinstance(error, UserError):
            if str(error) != self.refused:
                _logger.error("following the stream: %s Asking again every %g s.", error, AGAIN_SECONDS)
            self.refused = str(error)
            return
        self.refused = f"{type(error).__name__}: {error}"
        self._metrics.events.labels("failed").inc()
        _logger.exception("engagements of the stream cannot be observed")

    def _follow(self, reader: Reader) -> None:
        """Read on from where reading stands until the end is wanted."""
        self._at_end.clear()
        reader.start(self._next)
        complete = False
        while not self._ended.is_set():
            records = reader.poll()
            if records and not complete:  # only now it is sure that a broker answers: asking it waits for none
                complete = True
                if added := [each for each in reader.partitions([self.topic]) if each not in self._next]:
                    self._next |= dict.fromkeys(added)
                    self._at_end.clear()
                    reader.start(self._next)
                    continue
            self._take(records)
            if not reader.waiting:
                self._note()

    def _take(self, records: Iterable[Record]) -> None:
        for record in records:
            self.refused = None
            if record.end:
                self._next[record.partition] = record.offset
                self._at_end.add(record.partition)
                continue
            self._at_end.discard(record.partition)
            if record.produced is not None:
                self._produced[record.partition] = record.produced / 1e6
            admitted = self._admission.admit(record)
            self._next[record.partition] = record.offset + 1
            if admitted.row is not None:
                self._admitted.append(admitted.row)
            elif admitted.outcome != "end":
                self._metrics.events.labels(admitted.outcome).inc()
            if admitted.outcome == "bad" and not self._told_bad:
                self._told_bad = True
                _logger.warning(
                    "%s at offset %d cannot be used: %s. Further ones are counted only.",
                    record.partition,
                    record.offset,
                    admitted.reason,
                )
        while part := self._admitted[:AT_ONCE]:
            taken = self._state.observe(_columns(part))
            del self._admitted[:AT_ONCE]  # only now: what could not be observed is observed before anything else
            self._metrics.events.labels("observed").inc(taken)
            self._metrics.events.labels("copy").inc(len(part) - taken)

    def _note(self) -> None:
        """Until when everything is known."""
        behind = self._next.keys() - self._at_end
        if not behind:
            self.caught_up = True
            self._known_until = time.time()
        elif self._produced.keys() >= behind:
            self._known_until = max(self._known_until, min(self._produced[each] for each in behind))


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows], np.int64) for name in ("engagement_id", *COLUMNS)}
