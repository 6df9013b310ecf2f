"""Channels, and several writers: what one believes is compared with what is, and of several one wins."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from hypercast.errors import ConflictError, RegistryError
from hypercast.objects import channels
from hypercast.registry import Registry
from hypercast.snapshot import Snapshot


def publish(registry: Registry, watermark: int, *, value: float = 0.0, **changed: Any) -> Snapshot:
    arguments: dict[str, Any] = {
        "lineage": "FM",
        "tensors": {"weight": torch.full((2, 3), value or float(watermark))},
        "watermark": watermark,
        "schema_hash": "s",
        "dims": {"penultimate": 4},
        "dtype": "float16",
        "tasks": ["buy"],
        "metrics": {},
        "parent": None,
        "metadata": {},
    }
    return registry.publish(**arguments | changed)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def test_writers_that_went_on_from_one_snapshot(registry: Registry) -> None:
    first = publish(registry, 10, only_after_parent=True)
    second = publish(registry, 20, parent=first.name, only_after_parent=True)
    for watermark in (20, 30):
        with pytest.raises(ConflictError, match=r"newest snapshot is FM@0002, not FM@0001.*somebody else"):
            publish(registry, watermark, value=-1.0, parent=first.name, only_after_parent=True)
    with pytest.raises(ConflictError, match="not None"):
        publish(registry, 30, only_after_parent=True)
    assert publish(registry, 20, parent=first.name, only_after_parent=True) == second  # a retry is no conflict
    assert len(registry.list("FM")) == 2


def test_of_concurrent_writers_one_wins(registry: Registry) -> None:
    publish(registry, 1)
    registry.move("FM", "stable", expected=None, to="FM@0001")

    def attempt(number: int) -> tuple[str, str]:
        mine = Registry(registry.root)
        outcomes = []
        for action in (
            lambda: publish(mine, 2 + number, parent="FM@0001", only_after_parent=True),
            lambda: mine.move("FM", "stable", expected="FM@0001", to="FM@0002"),
        ):
            try:
                action()
                outcomes.append("won")
            except ConflictError:
                outcomes.append("told")
        return outcomes[0], outcomes[1]

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(8)))
    for each in zip(*outcomes, strict=True):
        assert sorted(each) == ["told"] * 7 + ["won"]
    assert registry.channels("FM") == {"latest": "FM@0002", "stable": "FM@0002"}


def test_channels(registry: Registry) -> None:
    for watermark in (10, 20, 30):
        publish(registry, watermark)
    assert registry.channels("FM") == {"latest": "FM@0003"}
    with pytest.raises(RegistryError, match=r"FM has no channel 'stable'; it has \{'latest': 'FM@0003'\}"):
        registry.channel("FM", "stable")
    registry.move("FM", "stable", expected=None, to="FM@0001")
    registry.move("FM", "stable", expected="FM@0001", to="FM@0002")
    with pytest.raises(ConflictError, match="FM/stable points to FM@0002, not to FM@0001 as expected"):
        registry.move("FM", "stable", expected="FM@0001", to="FM@0003")
    with pytest.raises(ConflictError, match="points to nothing, not to FM@0001"):
        registry.move("FM", "canary", expected="FM@0001", to="FM@0003")
    assert registry.channel("FM", "stable").watermark == 20
    assert registry.rollback_channel("FM", "stable").watermark == 10
    assert Registry(registry.root).channel("FM", "stable").watermark == 10
    with pytest.raises(RegistryError, match="nothing to go back to"):
        registry.rollback_channel("FM", "stable")
    registry.move("FM", "stable", expected="FM@0001", to=None)
    assert registry.channels("FM") == {"latest": "FM@0003"}


def test_a_channel_points_to_what_there_is(registry: Registry) -> None:
    publish(registry, 10)
    publish(registry, 10, lineage="Other")
    for channel, expected, to, message in (
        ("stable", None, "FM@0009", "no snapshot FM@0009"),
        ("stable", None, "Other@0001", "snapshots of FM, never to Other@0001"),
        ("stable", None, "0001", "LINEAGE@NNNN"),
        ("../stable", None, "FM@0001", "channel '../stable' cannot be used"),
        ("latest", "FM@0001", None, "cannot be removed"),
    ):
        with pytest.raises(RegistryError, match=message):
            registry.move("FM", channel, expected=expected, to=to)
    assert registry.channels("FM") == {"latest": "FM@0001"}


def test_latest_rolled_back_stays_until_the_next_publish(registry: Registry) -> None:
    publish(registry, 10)
    newest = publish(registry, 20)
    assert registry.rollback_channel("FM", "latest").version == 1
    assert publish(registry, 20) == newest  # the same again
    assert registry.current("FM").version == 1
    assert registry.latest("FM", as_of=20) == newest  # what time allows is no matter of channels
    publish(registry, 30)
    assert registry.current("FM").version == 3


def test_the_history_of_a_channel_is_bounded(registry: Registry) -> None:
    for watermark in range(1, 4):
        publish(registry, watermark)
    now = None
    for move in range(channels.HISTORY + 3):
        to = f"FM@000{1 + move % 3}"
        registry.move("FM", "stable", expected=now, to=to)
        now = to
    assert len(channels.read(registry.root, "FM", "stable").history) == channels.HISTORY
