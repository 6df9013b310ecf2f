"""``hypercast stream``: rehearse a stream, and check what was trained on."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hypercast.cli.output import DEMO, Json, RunFolder, emit, progress
from streaming import config as configuration

stream = typer.Typer(no_args_is_help=True, help="Streams: rehearse one, check what was trained on.")


class Destination(StrEnum):
    """Where messages can be sent."""

    KAFKA = "kafka"


@stream.command("replay")
def stream_replay(
    dataset: Annotated[Path, typer.Argument(help="Data set whose logs become messages.")],
    bootstrap: Annotated[str, typer.Option("--bootstrap", help="Kafka servers, such as 127.0.0.1:9092.")],
    to: Annotated[Destination, typer.Option("--to", help="Where to.")] = Destination.KAFKA,
    prefix: Annotated[str, typer.Option("--prefix", help="Of the topics' names: PREFIX.requests and so on.")] = "",
    client: Annotated[Path | None, typer.Option("--client", help="File of Kafka client settings.")] = None,
    partitions: Annotated[int, typer.Option("--partitions", help="Of each topic.")] = 2,
    shuffle_within: Annotated[float, typer.Option("--shuffle-within", help="Come up to so many seconds late.")] = 0.0,
    duplicate_share: Annotated[float, typer.Option("--duplicate-share", help="Of messages that come twice.")] = 0.0,
    late_share: Annotated[float, typer.Option("--late-share", help="Of messages that come too late.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the disorder.")] = 0,
    json: Json = False,
) -> None:
    """Send a data set's requests, engagements and late labels to new topics, with an end marker in each partition."""
    from streaming.dataset import Dataset
    from streaming.sources.kafka import Topics
    from streaming.sources.replay import Rehearsal, send
    from streaming.sources.sink import KafkaSink

    values = {"partitions": partitions, "shuffle_within_seconds": shuffle_within, "seed": seed}
    values |= {"duplicate_share": duplicate_share, "late_share": late_share}
    rehearsal = configuration.parse(values, Rehearsal.Config, source="hypercast stream replay").build()
    topics = Topics.prefixed(prefix)
    sink = KafkaSink(bootstrap_servers=bootstrap, settings=client)
    with progress(json) as advance:
        sent = rehearsal.arrange(Dataset.open(dataset))
        sink.create(topics.names(), partitions=partitions)
        advance(f"sending {len(sent)} messages", 0.0)
        send(sent, to=sink, topics=topics, partitions=partitions)
        advance(f"sent {len(sent)} messages", 1.0)
    late = {
        kind: sorted(each.id for each in sent if each.late and each.kind == kind) for kind in topics.kinds().values()
    }
    emit({"to": to.value, "messages": len(sent), "topics": dict(sink.counts), "late": late}, json)


@stream.command("check")
def stream_check(run: RunFolder = DEMO, json: Json = False) -> None:
    """Was every event trained on once and only once? Compares ids with sealed windows; fails if not."""
    from hypercast.runtime.stream_check import check

    found = check(run)
    emit(found, json)
    if not found["exact"]:
        raise typer.Exit(1)
