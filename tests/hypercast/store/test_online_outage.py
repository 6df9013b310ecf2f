"""An engine out of reach: who is told, who falls back, and what is not asked again; and what a reader needs."""

import logging
import signal
import subprocess
import sys
from typing import Any

import pytest

from hypercast.store.engine import UnreachableError
from hypercast.store.online import OnlineStore
from tests.hypercast.store.online_world import (
    CONFIG,
    Make,
    get,
    publish,
    put,
)
from tests.hypercast.store.valkey_server import ValkeyServer


def test_an_engine_out_of_reach(make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    store = make(unreachable="ladder", ask_again=0)
    patient = OnlineStore(config=store.config.model_copy(update={"unreachable": "wait"}), engine=store.engine)
    put(store, [(0, 1, 1, 1.0, 0)])
    publish(store, 1)
    real = store.engine.get

    def gone(*arguments: Any, **named: Any) -> Any:
        raise UnreachableError("127.0.0.1:6379 does not answer")

    monkeypatch.setattr(store.engine, "get", gone)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            found = get(store, [(0, 1, 1), (0, 1, 2)], 0)
            assert found.rungs()["ZEROS"] == 2 and not found.vector.any()
        with pytest.raises(UnreachableError):
            get(patient, [(0, 1, 1)], 0)
        monkeypatch.setattr(store.engine, "get", real)
        for _ in range(2):
            assert get(store, [(0, 1, 1)], 0).counts()["FRESH"] == 1
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "does not answer" in said[0] and "the engine answers again" in said[1]
    assert store.counters.to_dict()["unreachable"] == 6


def test_an_engine_out_of_reach_is_not_asked_by_every_read(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(unreachable="ladder", ask_again=1000)
    put(store, [(0, 1, 1, 1.0, 0)])
    publish(store, 1)
    asked: list[int] = []

    def gone(*arguments: Any, **named: Any) -> Any:
        asked.append(1)
        raise UnreachableError("127.0.0.1:6379 does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(store.engine, "get", gone)
        for _ in range(3):
            assert get(store, [(0, 1, 1)], 0).rungs()["ZEROS"] == 1
    assert len(asked) == 1 and store.counters.to_dict()["unreachable"] == 3
    monkeypatch.setattr("hypercast.store.outage.time.monotonic", lambda: 1e12)
    assert get(store, [(0, 1, 1)], 0).counts()["FRESH"] == 1


def test_a_server_that_goes_and_comes_back(valkey_server: ValkeyServer, caplog: pytest.LogCaptureFixture) -> None:
    engine = {"kind": "valkey", "urls": [valkey_server.url], "prefix": "gone", "timeout": 0.2, "patience": 0.2}
    store = OnlineStore.Config.model_validate(
        {**CONFIG, "engine": engine, "unreachable": "ladder", "ask_again": 0}
    ).build()
    put(store, [(0, 1, 1, 1.0, 0)])
    publish(store, 1)
    assert get(store, [(0, 1, 1)], 0).counts()["FRESH"] == 1
    valkey_server.tell(signal.SIGSTOP)
    try:
        with caplog.at_level(logging.WARNING):
            assert get(store, [(0, 1, 1)], 0).rungs()["ZEROS"] == 1
    finally:
        valkey_server.tell(signal.SIGCONT)
    assert "zeros are read until the engine answers again" in caplog.text
    assert get(store, [(0, 1, 1)], 0).vector[0, 0] == 1.0
    assert store.counters.to_dict()["unreachable"] == 1


def test_a_pointer_that_is_believed_is_not_asked_for_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(believed_for=1000)
    put(store, [(0, 1, 1, 1.0, 0)])
    assert get(store, [(0, 1, 1)], 0).snapshot is None
    publish(store, 1)
    calls = []
    real = store.engine.pointers
    monkeypatch.setattr(store.engine, "pointers", lambda: calls.append(1) or real())
    for _ in range(3):
        assert get(store, [(0, 1, 1)], 0).snapshot == "FM@0001"
    assert len(calls) == 1


def test_a_reader_needs_neither_torch_nor_a_server_client() -> None:
    code = (
        "import sys; from hypercast.store.online import OnlineStore; "
        "OnlineStore.Config.model_validate({'engine': {'kind': 'memory'}}).build(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'valkey')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
