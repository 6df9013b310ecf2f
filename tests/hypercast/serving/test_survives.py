"""What happens to a service under load when something around it breaks, or somebody means it ill."""

import contextlib
import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.hypercast.serving.conftest import Played
from tests.hypercast.serving.memory import memory
from tests.hypercast.serving.wire import answer, ask, connect, request
from tests.hypercast.serving.world import FIRST_USER, World, configured, load, serving, until
from tests.hypercast.store.valkey_server import ValkeyServer


def failures(answers: list[Any]) -> list[Any]:
    return [told for told in answers if isinstance(told, tuple)]


def test_a_store_that_is_killed_fails_no_answer(played: Played, tmp_path: Path) -> None:
    valkey = ValkeyServer(tmp_path / "valkey").start()
    try:
        engine = {"kind": "valkey", "urls": [valkey.url], "patience": 0.2}
        config = configured(played, tmp_path, engine=engine)
        assert config.serving is not None
        with serving(config) as world:
            world.rank(at=1)
            until(lambda: world.value("kept_total", outcome="put") >= 1)
        cached = config.model_copy(update={"serving": config.serving.model_copy(update={"mode": "cached"})})
        with serving(cached) as world, load(world, questions=lambda number: world.question(at=2)) as answers:
            until(lambda: len(answers) > 5)
            assert {rung for told in answers for rung in told["embeddings"]["rung"]} == {"FRESH"}
            valkey.kill()
            seen = len(answers)
            until(lambda: len(answers) > seen + 20)
            assert not failures(answers)
            assert {rung for told in answers[-5:] for rung in told["embeddings"]["rung"]} == {"ZEROS"}
            assert answers[-1]["models"]["expert"]["arm"] == "control"
    finally:
        valkey.kill()


def hostile(world: World, ended: threading.Event, statuses: list[int]) -> None:
    """Everything at once, until the end."""
    draw = random.Random(0)
    million = json.dumps({**world.question(), "item_ids": list(range(1_000_000))}).encode()
    bodies = [
        b"{",
        b"[" * 100_000,
        b'{"surface": NaN}',
        million,
        json.dumps(world.question(surface="attic")).encode(),
        json.dumps(world.question(user_id=2**64)).encode(),
        json.dumps(world.question(item_ids=list(range(5000)))).encode(),
    ]
    posts = [request("POST", "/v1/rank", body) for body in bodies]
    slow = [connect(world.port) for _ in range(8)]
    for one in slow:
        one.sendall(b"GET / HTTP/1.1\r\nx")
    while not ended.is_set():
        with connect(world.port) as connection, contextlib.suppress(OSError):
            connection.sendall(draw.choice(posts))
            connection.sendall(draw.randbytes(50))
            statuses.append(answer(connection)[0])
        for one in slow:
            with contextlib.suppress(OSError):
                one.sendall(b"x")
    for one in slow:
        one.close()


def test_hostile_clients_are_refused_and_others_do_not_notice(played: Played, tmp_path: Path) -> None:
    limits = {"header_seconds": 0.5, "body_seconds": 0.5}
    with serving(configured(played, tmp_path, limits=limits)) as world:
        ended, statuses = threading.Event(), list[int]()
        attacker = threading.Thread(target=hostile, args=(world, ended, statuses))
        with load(world, questions=lambda number: world.question(at=1)) as answers:
            attacker.start()
            until(lambda: len(statuses) > 20 and len(answers) > 10)
            reached = len(statuses)
            with memory() as used:  # a body of a million items, if it is read and parsed, takes some 45 MiB
                until(lambda: len(statuses) > reached + 40 and world.value("refused_total", reason="slow headers") >= 8)
            ended.set()
            attacker.join(30)
        assert not failures(answers)
        assert set(statuses) <= {0, 400, 413, 422}
        assert used.most < 24 << 20
        assert ask(world.port, "GET", "/healthz")[0] == 200


def test_more_than_can_wait_are_told_to_come_again(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hypercast.serving.models.expert import ExpertScorer

    held = threading.Event()
    score = ExpertScorer.score

    def waits(self: ExpertScorer, *given: Any) -> Any:
        assert held.wait(20)
        return score(self, *given)

    with serving(configured(played, tmp_path, mode="expert", limits={"waiting": 2})) as world:
        monkeypatch.setattr(ExpertScorer, "score", waits)
        connections = [connect(world.port) for _ in range(12)]
        for number, connection in enumerate(connections):
            body = json.dumps(world.question(at=1, user_id=FIRST_USER + number)).encode()
            connection.sendall(request("POST", "/v1/rank", body))
        try:  # two at most are being scored, two wait
            until(lambda: world.value("refused_total", reason="unavailable") >= 8)
        finally:
            held.set()
        statuses = sorted(answer(connection)[0] for connection in connections)
        assert set(statuses) == {200, 503} and statuses.count(200) >= 3
        for connection in connections:
            connection.close()
        world.rank(at=2)
