"""A corner of the tests' Valkey server: empty at first, and apart from all others."""

import itertools

import pytest

from hypercast.store.valkey.engine import ValkeyEngine

_number = itertools.count()


class ValkeyPlace:
    """Engines on one prefix of the session's server; ``settings`` go into their Config."""

    persistent = shared = True

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.server = request.getfixturevalue("valkey_server")
        self.prefix = f"test-{next(_number)}"

    def open(self, **settings: object) -> ValkeyEngine:
        values = {"urls": [self.server.url], "prefix": self.prefix, "patience": 5.0, **settings}
        return ValkeyEngine.Config.model_validate(values).build()
