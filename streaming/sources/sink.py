"""Kafka at the writing end: topics are made, messages put into chosen partitions, and every one is acknowledged."""

from collections import Counter
from pathlib import Path

from streaming.errors import UserError
from streaming.sources.kafka import client


class KafkaSink:
    """Writes messages. :meth:`flush` says whether all of them have arrived.

    Args:
        bootstrap_servers, settings: see :class:`streaming.sources.kafka.KafkaReader`.
    """

    def __init__(self, *, bootstrap_servers: str, settings: Path | None = None) -> None:
        self._servers, self._settings = bootstrap_servers, settings
        self._producer = client("Producer", bootstrap_servers, settings, **{"linger.ms": 5, "acks": "all"})
        self._failed: list[str] = []
        self.counts: Counter[str] = Counter()

    def create(self, topics: list[str], *, partitions: int, replication: int = 1) -> None:
        """Make the topics.

        Raises:
            UserError: one exists already, or the broker refuses or does not answer.
        """
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient, NewTopic

        admin: AdminClient = client("AdminClient", self._servers, self._settings)
        wanted = [NewTopic(name, num_partitions=partitions, replication_factor=replication) for name in topics]
        for name, made in admin.create_topics(wanted, operation_timeout=10.0).items():
            try:
                made.result()
            except KafkaException as error:
                raise UserError(
                    f"Kafka at {self._servers}: topic '{name}' cannot be made ({error.args[0].str()}). A rehearsal "
                    "needs topics of its own: give others, for example --prefix rehearsal2."
                ) from None

    def put(self, topic: str, partition: int, payload: bytes) -> None:
        """Send one message; waits while too many are under way."""
        while True:
            try:
                self._producer.produce(topic, payload, partition=partition, on_delivery=self._delivered)
                break
            except BufferError:
                self._producer.poll(0.1)
        self.counts[topic] += 1
        self._producer.poll(0)

    def flush(self, seconds: float = 60.0) -> None:
        """Wait until everything is acknowledged.

        Raises:
            UserError: something was not, in that time or at all.
        """
        left = self._producer.flush(seconds)
        if left or self._failed:
            reason = self._failed[0] if self._failed else f"no answer in {seconds:g} s"
            raise UserError(
                f"Kafka at {self._servers}: {left + len(self._failed)} messages were not acknowledged ({reason})."
            )

    def _delivered(self, error: object, message: object) -> None:
        if error is not None:
            self._failed.append(str(error))
