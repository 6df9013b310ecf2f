"""What a process does between loading and answering."""

import gc
import socket
from typing import Any

import pytest

from hypercast.runtime.config import PlatformConfig
from hypercast.serving import deploy
from hypercast.serving.config import ServingConfig


class Loaded:
    """A service's place, with many objects, and a server's, which counts those that collections leave alone."""

    def __init__(self) -> None:
        self.objects = [[number] for number in range(10_000)]
        self.frozen: list[int] = []

    def models(self) -> dict[str, str]:
        return {"version": "v"}

    def close(self) -> None:
        pass

    def run(self, sockets: list[socket.socket]) -> None:
        assert sockets[0].getsockname()[1]
        self.frozen.append(gc.get_freeze_count())


def test_what_is_loaded_is_left_alone_by_collections_before_anybody_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: Any = Loaded()
    monkeypatch.setattr(deploy, "open_service", lambda config: loaded)
    monkeypatch.setattr(deploy, "create_app", lambda service: service)
    monkeypatch.setattr(deploy, "server", lambda service, app: app)
    before = gc.get_freeze_count()
    try:
        deploy._run_here(PlatformConfig.model_construct(), ServingConfig(port=0))
    finally:
        gc.unfreeze()
    assert loaded.frozen[0] >= before + 10_000
