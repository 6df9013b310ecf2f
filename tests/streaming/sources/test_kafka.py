"""A real broker at both ends: offsets, ends of partitions, topics, and what a file of settings may say."""

from pathlib import Path

import pytest

from streaming.errors import ConfigError, DataError, UserError
from streaming.sources.kafka import KafkaReader, Topics, read_settings
from streaming.sources.positions import Partition
from streaming.sources.sink import KafkaSink
from tests.streaming.sources.broker import Broker, free_port


def filled(broker: Broker, topic: str, partitions: int = 2, messages: int = 50) -> KafkaSink:
    sink = KafkaSink(bootstrap_servers=broker.bootstrap)
    sink.create([topic], partitions=partitions)
    for number in range(messages):
        sink.put(topic, number % partitions, str(number).encode())
    sink.flush()
    return sink


def drain(reader: KafkaReader, partitions: int) -> dict[Partition, list[tuple[int, bytes]]]:
    """Offsets and payloads by partition, until all have said that there is no more."""
    seen: dict[Partition, list[tuple[int, bytes]]] = {}
    ends: dict[Partition, int] = {}
    while len(ends) < partitions:
        for record in reader.poll():
            if record.end:
                ends[record.partition] = record.offset
            else:
                assert record.produced > 1_600_000_000_000_000
                seen.setdefault(record.partition, []).append((record.offset, record.payload))
    for partition, records in seen.items():
        assert records[-1][0] + 1 == ends[partition]
    return seen


def test_reading_begins_where_it_is_told_to(broker: Broker) -> None:
    sink = filled(broker, "begins")
    assert sink.counts == {"begins": 50}
    reader = KafkaReader(bootstrap_servers=broker.bootstrap, settings=None)
    first, second = reader.partitions(["begins"])
    assert (str(first), str(second)) == ("begins/0", "begins/1")
    reader.start({first: None, second: 20})
    seen = drain(reader, 2)
    reader.close()
    assert seen[first] == [(place, str(2 * place).encode()) for place in range(25)]
    assert seen[second] == [(place, str(2 * place + 1).encode()) for place in range(20, 25)]


def test_two_readers_do_not_take_from_each_other(broker: Broker) -> None:
    filled(broker, "shared", partitions=1)
    for _ in range(2):
        reader = KafkaReader(bootstrap_servers=broker.bootstrap, settings=None)
        reader.start(dict.fromkeys(reader.partitions(["shared"])))
        assert len(drain(reader, 1)[Partition("shared", 0)]) == 50
        reader.close()


def test_a_topic_must_be_there_to_be_read_and_not_to_be_made(broker: Broker) -> None:
    filled(broker, "made", partitions=1, messages=0)
    reader = KafkaReader(bootstrap_servers=broker.bootstrap, settings=None)
    with pytest.raises(DataError, match=r"there is no topic 'nowhere'.*hypercast stream replay DATASET --bootstrap"):
        reader.partitions(["made", "nowhere"])
    reader.close()
    with pytest.raises(UserError, match=r"topic 'made' cannot be made .*exist.*--prefix rehearsal2"):
        KafkaSink(bootstrap_servers=broker.bootstrap).create(["made"], partitions=1)


def test_what_was_not_acknowledged_is_an_error() -> None:
    sink = KafkaSink(bootstrap_servers=f"127.0.0.1:{free_port()}")
    sink.put("topic", 0, b"lost")
    with pytest.raises(UserError, match="1 messages were not acknowledged"):
        sink.flush(seconds=0.2)


def test_settings_are_lines_that_change_nothing_that_matters(tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text("# who we are\n\nsasl.username = shop\nsasl.password=a=b\n", encoding="utf-8")
    assert read_settings(path) == {"sasl.username": "shop", "sasl.password": "a=b"}
    for line in ("group.id=ours", "enable.auto.commit=true", "auto.offset.reset=earliest", "nonsense"):
        path.write_text(f"a=b\n{line}\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=r"line 2: give NAME=VALUE, of any setting but group.id"):
            read_settings(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path / "gone")
    path.write_text("no.such.setting=1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no.such.setting.*Correct .*client.properties"):
        KafkaReader(bootstrap_servers="127.0.0.1:1", settings=path)


def test_topics_differ() -> None:
    assert Topics.prefixed("shop").names() == ["shop.requests", "shop.engagements", "shop.labels"]
    assert Topics.prefixed("") == Topics()
    with pytest.raises(ValueError, match="need a topic each"):
        Topics(requests="one", labels="one")
