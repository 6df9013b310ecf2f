"""One Valkey server for all tests that need none of their own, apart by prefix; the online store over each engine."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hypercast.store.online import OnlineStore
from tests.hypercast.store.online_world import CONFIG, Make
from tests.hypercast.store.valkey_server import ValkeyServer


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path_factory.mktemp("valkey")).start()
    yield server
    server.stop()


_numbers = itertools.count()


@pytest.fixture(params=["memory", "local", "valkey"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Opens a store over the engine; of all but ``memory`` the same one again."""
    engine: dict[str, Any] = {"kind": request.param}
    if request.param == "local":
        engine["path"] = str(tmp_path / "store")
    elif request.param == "valkey":
        server = request.getfixturevalue("valkey_server")
        engine |= {"urls": [server.url], "prefix": f"online-{next(_numbers)}"}

    def build(**changed: Any) -> OnlineStore:
        return OnlineStore.Config.model_validate({**CONFIG, "engine": engine, **changed}).build()

    return build


@pytest.fixture
def store(make: Make) -> OnlineStore:
    return make()
