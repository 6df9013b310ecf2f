"""One Valkey server for all tests that need no server of their own; they keep apart by prefix."""

from collections.abc import Iterator

import pytest

from tests.hypercast.store.valkey_server import ValkeyServer


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path_factory.mktemp("valkey")).start()
    yield server
    server.stop()
