"""A stream as a source of sealed windows: reads, checks, assembles, seals, and says when a window can be trained on."""

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

import pydantic

from streaming.config import Config as BaseConfig
from streaming.dataset import Window
from streaming.errors import DataError
from streaming.sources.kafka import KafkaReader, Record, Topics
from streaming.sources.ledger import Ledger
from streaming.sources.messages import BadMessage, Message, MessageReader
from streaming.sources.positions import NEVER, Partition, Position
from streaming.sources.sealed import SealedWindows
from streaming.sources.windows import WindowAssembler

_FEW = 100
"""Messages before which the share of bad ones says nothing."""
_logger = logging.getLogger(__name__)


class Reader(Protocol):
    """What a source reads from; :class:`streaming.sources.kafka.KafkaReader` is one."""

    @property
    def waiting(self) -> bool:
        """Whether it has had no answer since it last asked."""
        ...

    def partitions(self, topics: list[str]) -> list[Partition]:
        """All partitions of the topics."""
        ...

    def start(self, offsets: dict[Partition, int | None]) -> None:
        """Read from these offsets on, None from the first there is."""
        ...

    def poll(self) -> Iterable[Record]:
        """What has come, after a short while at most."""
        ...

    def close(self) -> None:
        """Stop reading."""
        ...


class StreamConfig(BaseConfig):
    """Where a stream comes from and how it is cut into windows.

    Attributes:
        bootstrap_servers: as Kafka clients take them, such as ``kafka1:9092,kafka2:9092``.
        topics: names of the three; that of labels is read only if some task of the data set has a delay.
        client: file of further client settings, ``name=value`` a line; what is in it, such as a password, is kept
            nowhere else.
        allowed_lateness_seconds: how far a partition's clock may be ahead of a message that still counts.
        idle_after_seconds: a partition that has had nothing to give for so long, by the clock on the wall, holds no
            window back any more; null: it does. With a number, what is late depends on when it was read.
        until: when to stop: ``end`` once every partition has given its end marker; ``forever`` after the last window;
            ``idle`` then too, or once nothing has come for ``silence_seconds``.
        silence_seconds: see ``until``.
        max_bad_share: of all messages, that may be in quarantine before the source stops.
        clock_tolerance_seconds: how far a message's event time may be after the time at which it was produced: one
            wrong clock must not close all windows.
    """

    bootstrap_servers: str = pydantic.Field(min_length=1)
    topics: Topics = Topics()
    client: Path | None = None
    allowed_lateness_seconds: float = pydantic.Field(default=0.0, ge=0)
    idle_after_seconds: float | None = pydantic.Field(default=None, gt=0)
    until: Literal["end", "idle", "forever"] = "forever"
    silence_seconds: float = pydantic.Field(default=60.0, gt=0)
    max_bad_share: float = pydantic.Field(default=0.01, ge=0, le=1)
    clock_tolerance_seconds: float = pydantic.Field(default=300.0, ge=0)

    def build(self, sealed: SealedWindows) -> "StreamSource":
        """Connect, and go on after the windows that are sealed."""
        reader = KafkaReader(bootstrap_servers=self.bootstrap_servers, settings=self.client)
        return StreamSource(config=self, sealed=sealed, reader=reader)


class StreamSource:
    """Seals windows one after the other. Use it as a context manager.

    Args:
        sealed: the stream's folder: what is there is not read again.
        reader: of the three topics.
    """

    Config = StreamConfig

    def __init__(self, *, config: StreamConfig, sealed: SealedWindows, reader: Reader) -> None:
        self.config = config
        self.sealed = sealed
        self._reader = reader
        self._messages = MessageReader.of(sealed.catalogue)
        self._kinds = config.topics.kinds()
        known = sealed.latest.positions if sealed.latest is not None else {}
        partitions = reader.partitions(self._topics())
        nowhere = Position(begin=0, offset=0, latest=NEVER, read=0)
        self._unseen = {each for each in partitions if each not in known}
        self._ledger = Ledger(folder=sealed.folder, positions=known)
        self._windows = WindowAssembler(
            windows=sealed.catalogue.windows,
            sealed=len(sealed.windows),
            lateness=round(config.allowed_lateness_seconds * 1e6),
            positions={each: known.get(each, nowhere) for each in partitions},
            ledger=self._ledger,
        )
        self._last = dict.fromkeys(partitions, time.monotonic())
        self._at_end: set[Partition] = set()
        reader.start({each: known[each].offset if each in known else None for each in partitions})

    def __enter__(self) -> "StreamSource":
        return self

    def __exit__(self, *_: object) -> None:
        self._ledger.flush()
        self._reader.close()

    def seal_next(self) -> Window | None:
        """Read until the next window is complete, and seal it; None if there will be no other.

        Raises:
            DataError: too many messages cannot be used, or what is to be read is not there any more.
        """
        while True:
            if (ripe := self._windows.ripe) is not None:
                opened = self._windows.take()
                sealed = self.sealed.seal(ripe, opened, self._windows.positions(), self._ledger)
                _logger.info("window %d is sealed: %s, %d copies", ripe.index, sealed.rows, sealed.copies)
                return ripe
            if self._finished():
                self._check_share(at_least=1)
                self._ledger.flush()
                self.sealed.end()
                return None
            for record in self._reader.poll():
                self._take(record)
            self._set_aside()
            self._check_share(at_least=_FEW)

    def _topics(self) -> list[str]:
        """Those that are read: where no label comes later than its request, there is nothing in the third."""
        delayed = any(task.delay_seconds > 0 for task in self.sealed.catalogue.config.tasks)
        return [name for name, kind in self._kinds.items() if delayed or kind != "labels"]

    def _take(self, record: Record) -> None:
        partition = record.partition
        self._last[partition] = time.monotonic()
        if partition in self._unseen:
            self._unseen.remove(partition)
            self._windows.begin(partition, record.offset)
        if record.end:
            self._at_end.add(partition)
            return
        self._at_end.discard(partition)
        try:
            message = self._read(record)
        except BadMessage as error:
            self._ledger.note("quarantine", partition, record.offset, str(error))
            self._windows.skip(partition, record.offset)
        else:
            self._windows.add(partition, record.offset, message)

    def _read(self, record: Record) -> Message:
        message = self._messages.read(record.payload)
        wanted = self._kinds[record.partition.topic]
        if message.kind not in (wanted, "end"):
            raise BadMessage(f"kind '{message.kind}' in the topic of kind '{wanted}'")
        if record.produced is not None:
            ahead = (message.time - record.produced) / 1e6
            if ahead > self.config.clock_tolerance_seconds:
                raise BadMessage(f"its time is {ahead:.0f} s after it was produced")
        return message

    def _set_aside(self) -> None:
        """Let windows ripen without idle partitions. A broker that does not answer says nothing of a partition."""
        now, patience = time.monotonic(), self.config.idle_after_seconds
        if self._reader.waiting:
            self._last = dict.fromkeys(self._last, now)
        if patience is not None:
            self._windows.idle({each for each in self._at_end if now - self._last[each] >= patience})

    def _finished(self) -> bool:
        if self.config.until == "end":
            return self._windows.ended
        if len(self.sealed.windows) == len(self.sealed.catalogue.windows):
            return True
        if self.config.until == "idle" and len(self._at_end) == len(self._last):
            return time.monotonic() - max(self._last.values()) >= self.config.silence_seconds
        return False

    def _check_share(self, *, at_least: int) -> None:
        read = sum(position.read - position.begin for position in self._windows.positions().values())
        bad = self._ledger.counts["quarantine"]
        if read >= at_least and bad > self.config.max_bad_share * read:
            self._ledger.flush()
            raise DataError(
                f"{self.sealed.folder / 'quarantine.jsonl'}: {bad} of {read} messages cannot be used, more than "
                f"max_bad_share: {self.config.max_bad_share:g} allows. The file says why each; mend what writes them, "
                "or raise the share, and run again."
            )
