"""A small data set as a stream, and a broker."""

from collections.abc import Iterator

import pytest

from streaming.dataset import Dataset
from streaming.importers.synthetic import Synthetic
from tests.streaming.sources.broker import Broker


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four windows; labels become known with their requests. Read only."""
    config = Synthetic.Config(users=10, items=20, windows=4, candidates=4, surfaces=2)
    return config.build(tmp_path_factory.mktemp("shop") / "data")


@pytest.fixture(scope="session")
def slow_shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same, but labels become known five days later, many of them a window later. Read only."""
    config = Synthetic.Config(users=10, items=20, windows=4, candidates=4, surfaces=2, label_delay_seconds=432_000)
    return config.build(tmp_path_factory.mktemp("slow_shop") / "data")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Shared by all tests: each takes topics of its own."""
    started = Broker(tmp_path_factory.mktemp("broker") / "broker.log")
    yield started
    started.kill()
