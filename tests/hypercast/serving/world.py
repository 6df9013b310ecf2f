"""A service over the tiny platform, and what is asked of it."""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hypercast.runtime.config import PlatformConfig
from hypercast.serving.config import ServingConfig
from hypercast.serving.deploy import listen, open_service, server
from hypercast.serving.http.app import create_app
from hypercast.serving.service import Service
from hypercast.store.online import OnlineStore
from hypercast.store.tae_log import TaeLog
from streaming.dataset import Dataset
from tests.hypercast.serving.conftest import Played
from tests.hypercast.serving.wire import answer, ask, connect, request, running

SECOND = 1_000_000
FIRST_ITEM, FIRST_USER = 1000, 100
FRESH_SECONDS, TTL_SECONDS = 3600, 86400
PATIENT = {"deadline_ms": 20_000.0}


def configured(played: Played, folder: Path, *, engine: Any = None, **serving: Any) -> PlatformConfig:
    """The platform with a run folder of its own, a copy, and an online store; ``engine``: of the store."""
    run = shutil.copytree(played.run, folder / "run")
    settings = {"clock": "given", "port": 0, "commit_seconds": 0.1, "refresh_seconds": 60.0, "live": PATIENT, **serving}
    online = {"engine": engine, "fresh_for": FRESH_SECONDS, "ttl": TTL_SECONDS, "unreachable": "ladder"}
    return played.config.model_copy(
        update={
            "run": run,
            "log": TaeLog.Config(fresh_for=1e9, ttl=1e9),  # how old the snapshot may be is not what is tested here
            "online": OnlineStore.Config.model_validate({**online, "ask_again": 0.1}),
            "serving": ServingConfig.model_validate(settings),
        }
    )


@dataclass(frozen=True, kw_only=True)
class World:
    """A running service. ``now``: microseconds, the first time that can be asked for."""

    config: PlatformConfig
    service: Service
    port: int
    now: int

    def question(self, *, at: float = 1.0, **changes: Any) -> dict[str, Any]:
        """One that is answered; ``at``: seconds from ``now``."""
        items = [FIRST_ITEM + offset for offset in (5, 3, 9, 1, 20, 7)]
        asked = {"surface": "surface_0", "user_id": FIRST_USER + 3, "time": self.now + round(at * SECOND)}
        return {**asked, "item_ids": items, "dense": {name: [1, 2, 0, 1, 3, 1] for name in self.given}, **changes}

    @property
    def given(self) -> list[str]:
        return self.service.state.given

    def rank(self, *, at: float = 1.0, **changes: Any) -> Any:
        """The answer to :meth:`question`, which must be one."""
        status, told = ask(self.port, "POST", "/v1/rank", self.question(at=at, **changes))
        assert status == 200, told
        return told

    def value(self, name: str, **labels: str) -> float:
        return self.service.metrics.value(name, **labels)


@contextlib.contextmanager
def serving(config: PlatformConfig) -> Iterator[World]:
    """A service in this process, listening."""
    assert config.serving is not None
    with contextlib.closing(open_service(config)) as service:
        listening = listen(config.serving)
        with running(server(service, create_app(service)), listening) as port:
            now = Dataset.open(config.dataset.path).windows[-1].end
            yield World(config=config, service=service, port=port, now=now)


def until(true: Callable[[], bool], *, seconds: float = 20.0) -> None:
    """Wait for what another thread does."""
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it never came true"
        time.sleep(0.01)


def scores(told: Any) -> np.ndarray:
    """Probabilities [C, T] of an answer."""
    return np.array(list(told["scores"].values())).T


@contextlib.contextmanager
def load(world: World, *, threads: int = 2, questions: Callable[[int], dict[str, Any]]) -> Iterator[list[Any]]:
    """Questions one after the other, over and over, on a connection a thread; the answers, filled as they come.

    What is not answered by 200 is in the list as (status, body).
    """
    import json

    answers: list[Any] = []
    ended = threading.Event()

    def run(first: int) -> None:
        with connect(world.port) as connection:
            number = first
            while not ended.is_set():
                body = json.dumps(questions(number)).encode()
                connection.sendall(request("POST", "/v1/rank", body))
                status, told = answer(connection)
                answers.append(told if status == 200 else (status, told))
                number += threads

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield answers
    finally:
        ended.set()
        for worker in workers:
            worker.join(60)
