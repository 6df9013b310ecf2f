"""Servers of a test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hypercast.store.valkey.cases import Start
from tests.hypercast.store.valkey_server import ValkeyServer


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts one with the options given; all end with the test."""
    servers: list[ValkeyServer] = []

    def start(**options: str) -> ValkeyServer:
        servers.append(ValkeyServer(tmp_path / str(len(servers)), **options).start())
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
