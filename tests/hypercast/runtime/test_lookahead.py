"""Back-pressure: how much work is handed out before the slowest job has caught up."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypercast.runtime import sharded
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.engine import Job
from hypercast.runtime.platform import Platform
from streaming import config as configuration
from streaming.dataset import Dataset, Window
from streaming.errors import ConfigError


class Recorder:
    """An engine that does no work: a promise is the call itself, and is kept when somebody asks for its result."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int]] = []
        self.open: set[tuple[str, str, int]] = set()
        self.most_open = 0

    def start(self, job: Job) -> str:
        return job.name

    def call(self, handle: str, method: str, window: int, *arguments: Any) -> Any:
        self.calls.append((handle, method, window))
        self.open.add(self.calls[-1])
        self.most_open = max(self.most_open, len({window for _, _, window in self.open}))
        return self.calls[-1]

    def result(self, promise: tuple[str, str, int]) -> dict[str, float]:
        name, _, window = promise
        self.open.discard(promise)
        if name == "foundation":
            self.open.discard((name, "publish", window))  # training comes after it
        return {}

    def restarts(self) -> Mapping[str, int]:
        return {}

    def stop(self, handle: str) -> None:
        return None

    def close(self) -> None:
        return None


@pytest.fixture(scope="module")
def platform(
    platform_file: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, small_dataset: Dataset
) -> Platform:
    file = platform_file(tmp_path_factory.mktemp("lookahead") / "run")
    made = Platform(configuration.load(file, PlatformConfig))
    made._monitor = MagicMock()  # type: ignore[method-assign]
    return made


@given(lookahead=st.integers(0, 6), windows=st.integers(1, 20), jobs=st.integers(1, 4))
def test_no_more_windows_are_under_way_than_the_file_says(
    platform: Platform, lookahead: int, windows: int, jobs: int
) -> None:
    platform.config = platform.config.model_copy(update={"lookahead": lookahead})
    engine, experts = Recorder(), [f"experts-{job}" for job in range(jobs)]
    made = [Window(index, index * 10, index * 10 + 10) for index in range(1, windows + 1)]
    done: list[int] = []
    platform.run_windows(engine, MagicMock(), "foundation", experts, made, lambda window: done.append(window.index))
    assert engine.most_open == min(lookahead + 1, windows)
    assert not engine.open and done == list(range(1, windows + 1))
    for name in ("foundation", *experts):
        trained = [window for job, method, window in engine.calls if job == name and method == "run_window"]
        assert trained == done


def test_a_lookahead_beyond_the_snapshots_that_are_kept_is_refused(
    platform_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = platform_file(tmp_path / "run", "lookahead: 3\n")
    assert configuration.load(file, PlatformConfig).lookahead == 3
    file.write_text(file.read_text().replace("cross_history", "arms: [control, finetune]\n  cross_history"))
    with pytest.raises(ConfigError, match=r"lookahead: 3 lets the foundation model be so far.*Give keep: 5 or more"):
        configuration.load(file, PlatformConfig)


def test_workers_of_a_sharded_model_are_through_before_any_job_starts(
    platform_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trained(Exception):
        pass

    def train(config: PlatformConfig, progress: Any) -> None:
        raise Trained(config.foundation.sharding.workers)

    monkeypatch.setattr(sharded, "train", train)
    file = platform_file(tmp_path / "run")
    file.write_text(file.read_text().replace("publisher: {keep: 2}", "sharding: {workers: 2}"))
    with pytest.raises(Trained, match="2"):
        Platform(configuration.load(file, PlatformConfig)).run(lambda message, share: None)
    assert not (tmp_path / "run" / "checkpoints").exists()
    file.write_text(file.read_text().replace("cross_history", "arms: [control, finetune]\n  cross_history"))
    with pytest.raises(ConfigError, match=r"foundation.sharding: its workers train on all windows before the experts"):
        configuration.load(file, PlatformConfig)
