"""Kafka at the reading end: positions are ours, the broker keeps none.

Partitions are assigned, not subscribed to, and nothing is ever committed: where reading goes on is decided by what was
sealed and trained on, and by nothing else. A broker that does not answer is waited for.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from streaming.config import Config as BaseConfig
from streaming.errors import ConfigError, DataError, UserError
from streaming.sources.positions import Partition

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError

_logger = logging.getLogger(__name__)

FIXED = {
    "group.id": "hypercast",  # a name that the client asks for; no group is ever joined
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",  # offsets that are gone are an error, never a leap
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
}
"""What exactness rests on; a file of settings may not change it."""


class Topics(BaseConfig):
    """Names of the three topics."""

    requests: str = pydantic.Field(default="requests", min_length=1)
    engagements: str = pydantic.Field(default="engagements", min_length=1)
    labels: str = pydantic.Field(default="labels", min_length=1)

    @pydantic.model_validator(mode="after")
    def _differ(self) -> "Topics":
        if len(set(self.names())) < 3:
            raise ValueError("requests, engagements and labels need a topic each. Example: requests: shop.requests")
        return self

    @staticmethod
    def prefixed(prefix: str) -> "Topics":
        """The names that topics have unless others are given, each after ``PREFIX.`` if there is a prefix."""
        before = f"{prefix}." if prefix else ""
        return Topics(**{name: before + name for name in Topics.model_fields})

    def names(self) -> list[str]:
        """All of them."""
        return [self.requests, self.engagements, self.labels]

    def kinds(self) -> dict[str, str]:
        """Which kind of message each topic carries, beside ends."""
        return {self.requests: "request", self.engagements: "engagement", self.labels: "labels"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What a partition gave: a message as it came, or (``end`` true) the news that there is none after it yet.

    Attributes:
        offset: of the message, or of the one that will come next.
        produced: when it was produced, microseconds UTC by the producer's or the broker's clock; None if not said.
    """

    partition: Partition
    offset: int
    produced: int | None = None
    payload: bytes | None = None
    end: bool = False


class KafkaReader:
    """Reads partitions from positions on.

    Args:
        bootstrap_servers: as Kafka clients take them.
        settings: file of further client settings (``name=value`` a line), such as credentials; None for none.
        patience_seconds: how long between two lines of the log while no broker answers.
    """

    def __init__(self, *, bootstrap_servers: str, settings: Path | None, patience_seconds: float = 30.0) -> None:
        self._servers, self._patience = bootstrap_servers, patience_seconds
        self._consumer: Consumer = client("Consumer", bootstrap_servers, settings, error_cb=self._note)
        self._silent_since: float | None = None
        self._told = self._asked = -patience_seconds

    @property
    def waiting(self) -> bool:
        """Whether the broker has not answered since it was last found silent."""
        return self._silent_since is not None

    def partitions(self, topics: list[str]) -> list[Partition]:
        """All partitions of ``topics``; waits for a broker that answers.

        Raises:
            DataError: a topic does not exist.
        """
        pause = 0.1
        while (known := self._ask(seconds=5.0)) is None:
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
        lacking = [name for name in topics if name not in known or known[name].error is not None]
        if lacking:
            raise DataError(
                f"Kafka at {self._servers}: there is no topic '{lacking[0]}'. Create it, correct stream.topics, or "
                f"fill it for a rehearsal: hypercast stream replay DATASET --bootstrap {self._servers}"
            )
        return [Partition(name, index) for name in topics for index in sorted(known[name].partitions)]

    def start(self, offsets: Mapping[Partition, int | None]) -> None:
        """Read these partitions from these offsets on; None: from the first there is."""
        from confluent_kafka import OFFSET_BEGINNING, TopicPartition

        self._consumer.assign(
            [
                TopicPartition(each.topic, each.index, OFFSET_BEGINNING if offset is None else offset)
                for each, offset in offsets.items()
            ]
        )

    def poll(self, *, most: int = 500, seconds: float = 0.2) -> list[Record]:
        """What has come, at most ``most``, after at most ``seconds``; nothing while no broker answers.

        Raises:
            DataError: what was to be read is not there any more.
            UserError: the broker refuses.
        """
        records = []
        for message in self._consumer.consume(most, seconds):
            error = message.error()
            if error is not None and error.code() != _codes()._PARTITION_EOF:
                self._note(error, message.topic(), message.partition())
                continue
            self._answered()
            kind, stamp = message.timestamp()
            records.append(
                Record(
                    partition=Partition(message.topic(), message.partition()),
                    offset=message.offset(),
                    produced=stamp * 1000 if kind else None,
                    payload=message.value(),
                    end=error is not None,
                )
            )
        if self.waiting and time.monotonic() - self._asked > 1.0:  # with nothing to give, it may be there again
            self._asked = time.monotonic()
            self._ask(seconds=0.2)
        return records

    def _ask(self, *, seconds: float) -> dict[str, Any] | None:
        """What topics there are, None if no broker answers."""
        from confluent_kafka import KafkaException

        try:
            topics = self._consumer.list_topics(timeout=seconds).topics
        except KafkaException as error:
            self._note(error.args[0])
            return None
        self._answered()
        return topics

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def _note(self, error: "KafkaError", topic: str | None = None, index: int | None = None) -> None:
        """Raise what waiting does not mend; of the rest, say now and then that the broker is waited for."""
        codes = _codes()
        if error.code() in (codes._AUTO_OFFSET_RESET, codes.OFFSET_OUT_OF_RANGE):
            raise DataError(
                f"Kafka at {self._servers}: {topic}/{index} does not hold the offset at which reading has to go on "
                f"({error.str()}): retention has removed it, or the topic was made anew. What was sealed is whole; "
                "what was not is lost here. Restore the topic, or begin a new run folder."
            )
        refused = (codes._AUTHENTICATION, codes.TOPIC_AUTHORIZATION_FAILED, codes.SASL_AUTHENTICATION_FAILED)
        if error.code() in (*refused, codes.UNKNOWN_TOPIC_OR_PART, codes._UNKNOWN_TOPIC) or error.fatal():
            raise UserError(f"Kafka at {self._servers}: {error.str()} ({error.name()}). Correct `stream:`.")
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        if now - self._told >= self._patience:
            self._told = now
            _logger.warning(
                "Kafka at %s does not answer (%s); waiting for it, %.0f s so far. Nothing is lost.",
                self._servers,
                error.str(),
                now - self._silent_since,
            )

    def _answered(self) -> None:
        if self._silent_since is not None:
            _logger.warning("Kafka at %s answers again", self._servers)
            self._silent_since, self._told = None, -self._patience


def read_settings(path: Path) -> dict[str, str]:
    """Settings of a Kafka client, ``name=value`` a line; empty lines and those that begin with # are passed over.

    Raises:
        ConfigError: the file cannot be read, a line is something else, or sets what exactness rests on.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Give a file of Kafka client settings.") from None
    settings = {}
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, equals, value = (part.strip() for part in line.partition("="))
            if not equals or name in FIXED:
                raise ConfigError(
                    f"{path}, line {number}: give NAME=VALUE, of any setting but {', '.join(FIXED)}. "
                    "Example: security.protocol=SASL_SSL"
                )
            settings[name] = value
    return settings


def client(kind: str, bootstrap_servers: str, settings: Path | None, **more: Any) -> Any:
    """A ``Consumer``, ``Producer`` or ``AdminClient`` of confluent_kafka.

    Raises:
        ConfigError: confluent_kafka is not installed, or refuses a setting.
    """
    try:
        import confluent_kafka
        import confluent_kafka.admin
    except ModuleNotFoundError:
        raise ConfigError("Kafka needs a client: pip install 'hypercast-platform[kafka]'.") from None
    values = {
        "bootstrap.servers": bootstrap_servers,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 5000,
        "log_level": 2,  # of the client's own lines: errors are told of here
        **({"fetch.wait.max.ms": 100} if kind == "Consumer" else {}),
        **(read_settings(settings) if settings else {}),
        **more,
    }
    try:
        owner = confluent_kafka.admin if kind == "AdminClient" else confluent_kafka
        return getattr(owner, kind)(values | (FIXED if kind == "Consumer" else {}), logger=_logger)
    except confluent_kafka.KafkaException as error:
        raise ConfigError(f"Kafka client: {error.args[0].str()}. Correct {settings or '`stream:`'}.") from None


def _codes() -> Any:
    from confluent_kafka import KafkaError

    return KafkaError
