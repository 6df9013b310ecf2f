"""Pins, rows, times and configurations that the online store refuses, and what it says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypercast.errors import RegistryError, StoreError
from hypercast.pins import Pin
from hypercast.store.online import OnlineStore
from streaming import config as configuration
from streaming.errors import ConfigError, LeakageError
from tests.hypercast.store.online_world import PIN, T0, arguments_of, get, publish, put


@pytest.mark.parametrize(
    ("pin", "width", "error", "message"),
    [
        (Pin(expert="home", lineage="FM", dtype="float32"), 2, RegistryError, "dtype is float16, not float32"),
        (Pin(expert="home", lineage="FM", dims={"penultimate": 3}), 2, RegistryError, "width is 2, not 3"),
        (Pin(expert="home", lineage="FM", dims={"other": 2}), 2, RegistryError, "pinned to representations"),
        (PIN, 3, StoreError, "width 2, but expert 'home' was built for 3"),
    ],
)
def test_pins_refuse(store: OnlineStore, pin: Pin, width: int, error: type, message: str) -> None:
    put(store, [(0, 1, 1, 1.0, 1)])
    publish(store, 1)
    with pytest.raises(error, match=message):
        get(store, [(0, 1, 1)], 1, pin=pin, width=width)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"vector": np.ones((1, 3), np.float16)},
            r"with width 2, so that they must be \(1, 2\)",
        ),
        ({"vector": np.full((1, 2), np.nan)}, "not finite"),
        ({"vector": np.full((1, 2), 1e6)}, "ends at 65504"),
        ({"vector": np.ones((1, 2), np.int64)}, "must be floats"),
        ({"computed_at": np.array([T0, T0])}, "shapes"),
        ({"item_id": np.array([1, 2])}, "item_id has shape"),
        ({"surface": np.array([0.5])}, "surface has shape .* dtype float64"),
        ({"surface": np.array([-1])}, r"key 0 is \[-1, 1, 1\]; surface and item must not be negative"),
        ({"item_id": np.array([-3])}, "must not be negative"),
        (
            {"user_id": np.array([2**64 - 1], np.uint64)},
            r"user_id has shape .* dtype uint64; needed are integers \[N\]",
        ),
        ({"computed_at": np.array([T0 + 0.9])}, "have dtypes float64 and int64; needed are integers"),
        ({"history_end": np.array([np.nan])}, "have dtypes int64 and float64; needed are integers"),
        ({"computed_at": np.array([2**63], np.uint64)}, "have dtypes uint64 and int64"),
    ],
)
def test_bad_rows_are_refused(changed: dict[str, Any], message: str) -> None:
    store = OnlineStore.Config.model_validate({"engine": {"kind": "memory"}}).build()
    with pytest.raises(StoreError, match=message):
        put(store, [(0, 1, 1, 1.0, 0)], **changed)
    assert store.engine.snapshots() == []


def test_the_stores_own_rows_cannot_be_asked_for(store: OnlineStore) -> None:
    with pytest.raises(StoreError, match="must not be negative"):
        get(store, [(-1, 1, -1)], 0)


@pytest.mark.parametrize("now", [2**63, -(2**63), 1.5, float("nan"), "now", None])
def test_times_that_are_none(store: OnlineStore, now: Any) -> None:
    put(store, [(0, 1, 1, 1.0, 0)])
    publish(store, 1)
    for read in (
        lambda: store.get(now=now, **arguments_of([(0, 1, 1)])),
        lambda: store.get_as_of(now, **arguments_of([])),
    ):
        with pytest.raises(StoreError, match=r"online store: read as of .*; needed is an integer"):
            read()
    for last in (2**63 - 1, -(2**63) + 1):
        assert len(store.get(now=last, **arguments_of([(0, 1, 1), (0, 1, 2)])).status) == 2


def test_times_out_of_order_are_refused(store: OnlineStore) -> None:
    with pytest.raises(LeakageError, match="watermark"):
        put(store, [(0, 1, 1, 1.0, -1)])
    with pytest.raises(LeakageError, match="history_end"):
        put(store, [(0, 1, 1, 1.0, 0)], history_end=np.array([T0 + 1]))


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("{kind: cassandra}", "an engine has a kind, one of memory, local, valkey"),
        ("{path: x}", "an engine has a kind"),
        ("7", "an engine has a kind"),
        ("{kind: local, paht: x}", "engine local, key '(path|paht)'.*allowed keys are kind, path"),
        ("{kind: valkey, urls: [http://x]}", r"engine valkey, key '.*': .*a url is valkey://HOST:PORT"),
    ],
)
def test_a_mistake_in_the_engines_configuration(tmp_path: Path, engine: str, message: str) -> None:
    (tmp_path / "online.yaml").write_text(f"engine: {engine}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"(?s)key 'engine'.*{message}"):
        configuration.load(tmp_path / "online.yaml", OnlineStore.Config)


@pytest.mark.parametrize("engine", ["{kind: memory}", "{kind: local, path: x}", "{kind: valkey}", "null"])
def test_a_configuration_is_written_as_it_is_read(tmp_path: Path, engine: str) -> None:
    (tmp_path / "online.yaml").write_text(f"codec: int4\nengine: {engine}\n", encoding="utf-8")
    read = configuration.load(tmp_path / "online.yaml", OnlineStore.Config)
    (tmp_path / "again.yaml").write_text(configuration.dump(read), encoding="utf-8")
    assert configuration.load(tmp_path / "again.yaml", OnlineStore.Config) == read
    assert OnlineStore.Config(codec="int4", engine=read.engine) == read


def test_without_an_engine_a_folder_is_needed(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no engine is given"):
        OnlineStore.Config().build()
    store = OnlineStore.Config().build(tmp_path / "here")
    put(store, [(0, 1, 1, 1.0, 0)])
    publish(store, 1)
    assert (tmp_path / "here").is_dir()
