"""Platform files whose parts do not fit each other are refused."""

from pathlib import Path
from typing import Any

import pytest

from hypercast.runtime.config import PlatformConfig
from streaming import config as configuration
from streaming.errors import ConfigError


def parsed(tmp_path: Path, **values: Any) -> PlatformConfig:
    given = {"name": "shop", "dataset": {"path": str(tmp_path)}, "run": str(tmp_path / "run"), **values}
    return configuration.parse(given, PlatformConfig, source="here")


@pytest.mark.parametrize(
    ("part", "advice"),
    [
        ({"foundation": {"trainer": {"epochs": 2}}}, r"trainer: \{epochs: 1\}"),
        ({"expert": {"trainer": {"epochs": 2}}}, r"trainer: \{epochs: 1\}"),
        ({"expert": {"replay": {"windows": 1}}}, r"expert: \{replay: \{windows: 0\}\}"),
    ],
)
def test_every_event_of_a_stream_is_trained_on_once(tmp_path: Path, part: dict[str, Any], advice: str) -> None:
    stream = {"bootstrap_servers": "127.0.0.1:9092"}
    with pytest.raises(ConfigError, match=rf"stream: every event of a stream is trained on once\. Give {advice}"):
        parsed(tmp_path, stream=stream, **part)
    assert parsed(tmp_path, **part).stream is None
    assert parsed(tmp_path, stream=stream, expert={"label_rates": {}}).stream is not None


@pytest.mark.parametrize("seeds", [[0, 0], [-1], []])
def test_seeds_are_different_numbers(tmp_path: Path, seeds: list[int]) -> None:
    with pytest.raises(ConfigError, match="key 'seeds"):
        parsed(tmp_path, seeds=seeds)
