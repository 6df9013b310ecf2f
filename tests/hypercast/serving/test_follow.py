"""A service that follows its platform's topic of engagements, through the death of the broker."""

from pathlib import Path

import pytest

from hypercast.runtime.stream import sealed_windows
from hypercast.serving.deploy import open_service
from hypercast.serving.features import follower as following
from streaming.dataset import Dataset
from streaming.errors import ConfigError
from streaming.sources.kafka import Topics
from streaming.sources.replay import Rehearsal, Sent, send
from streaming.sources.sink import KafkaSink
from streaming.sources.source import StreamConfig
from streaming.workspace import Workspace
from tests.hypercast.serving.conftest import Played
from tests.hypercast.serving.features.test_state import by_surface, check_same
from tests.hypercast.serving.replay import questions_of
from tests.hypercast.serving.wire import ask
from tests.hypercast.serving.world import FIRST_ITEM, configured, serving, until
from tests.streaming.sources.broker import Broker, Door

DAY = 86_400
PARTITIONS = 2
TOPICS = Topics.prefixed("followed")


def fill(door: Door, broker: Broker, sent: list[Sent], folder: Path) -> None:
    """Fill a new broker with nobody else at the door, and then let everybody in."""
    settings = folder / "client.properties"
    settings.write_text("client.id=filler\n", encoding="utf-8")
    door.open(broker.port, only=b"filler")
    sink = KafkaSink(bootstrap_servers=door.bootstrap, settings=settings)
    sink.create(TOPICS.names(), partitions=PARTITIONS)
    send(sent, to=sink, topics=TOPICS, partitions=0)
    door.shut()
    door.open(broker.port)


def test_engagements_come_from_the_platforms_own_stream(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(following, "AGAIN_SECONDS", 0.2)
    dataset = Dataset.open(played.dataset)
    last, door = dataset.windows[-1], Door()
    disorder = Rehearsal.Config(partitions=PARTITIONS, shuffle_within_seconds=DAY, duplicate_share=0.2, seed=1)
    sent = disorder.build().arrange(dataset)
    half = next(place for place, message in enumerate(sent) if message.time > (last.start + last.end) // 2)
    stream = StreamConfig(bootstrap_servers=door.bootstrap, topics=TOPICS, allowed_lateness_seconds=DAY)
    config = configured(played, tmp_path, mode="expert", follow="stream").model_copy(update={"stream": stream})

    first = Broker(tmp_path / "first.log", advertised=door.port)
    request.addfinalizer(first.kill)
    fill(door, first, sent[:half], tmp_path)
    windows = [*sealed_windows(stream, run=config.run, catalogue=dataset, most=len(dataset.windows) - 1)]
    assert sum(map(len, windows)) == len(dataset.windows) - 1

    def come(messages: list[Sent]) -> list[int]:
        return [message.id for message in messages if message.kind == "engagement" and message.time >= last.start]

    door.shut()
    with serving(config) as world:  # it starts without a broker
        follower = world.service.follower
        assert follower is not None
        status, told = ask(world.port, "GET", "/healthz/ready")
        assert status == 503 and told["status"] == "catching up"
        status, told = ask(world.port, "GET", "/healthz")
        assert status == 200 and not told["stream"]["caught_up"] and told["stream"]["behind_seconds"] > DAY
        door.open(first.port)
        until(lambda: ask(world.port, "GET", "/healthz/ready")[0] == 200, seconds=120)
        assert world.value("events_total", outcome="observed") == len({*come(sent[:half])}) > 0

        door.shut()
        first.kill()
        until(lambda: follower.behind_seconds() > 1, seconds=120)
        status, told = ask(world.port, "GET", "/healthz")
        assert status == 200 and told["stream"]["behind_seconds"] > 1
        assert world.value("stream_behind_seconds", topic=TOPICS.engagements) > 1
        world.rank(time=last.start)  # it answers from what it knows

        second = Broker(tmp_path / "second.log", advertised=door.port)
        request.addfinalizer(second.kill)
        fill(door, second, sent, tmp_path)  # with the log that a disk would have kept
        until(lambda: world.value("events_total", outcome="observed") == len({*come(sent)}), seconds=120)
        assert world.value("events_total", outcome="copy") == len(come(sent)) - len({*come(sent)}) > 0
        assert len({*come(sent)}) == len(dataset.engagements(last.index)) > len({*come(sent[:half])})
        until(lambda: ask(world.port, "GET", "/healthz")[1]["stream"]["behind_seconds"] < 5, seconds=120)

        workspace, state, asked = Workspace(dataset), world.service.state, 0
        requests = workspace.requests(last.index)
        for row in range(len(requests)):
            for stored in by_surface(requests.slice(row, row + 1), len(workspace.inputs.surfaces)):
                if len(stored):
                    check_same(workspace, stored, state.requests(questions_of(workspace, stored, given=state.given)))
                    asked += 1
        assert asked > 20

        event = {"user_id": 100, "item_id": FIRST_ITEM, "surface": None, "time": last.end}
        event["action"] = dataset.config.actions[0]
        assert ask(world.port, "POST", "/v1/events", {"events": [event]})[0] == 200
        assert world.value("events_total", outcome="observed") == len({*come(sent)}) + 1
        door.shut()
    assert not follower._thread.is_alive()


def test_without_a_stream_there_is_nothing_to_follow(played: Played, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no stream to follow. Give `stream:`"):
        open_service(configured(played, tmp_path, mode="expert", follow="stream"))
