"""A small expert on the tiny data set, and a log with what a small foundation model says."""

from pathlib import Path

import pytest

from experts.model import ExpertModel
from foundation.hstu.layer import HSTUStack
from foundation.hstu.vocabulary import BatchVocabulary
from foundation.model import FoundationModel
from foundation.publish import Publisher
from hypercast.registry import Registry
from hypercast.store.tae_log import TaeLog
from streaming.workspace import Workspace

EMBEDDING = 6
SIZES = BatchVocabulary.Config(default=128)


@pytest.fixture(scope="session")
def embedding() -> int:
    """Width of the foundation embedding."""
    return EMBEDDING


@pytest.fixture(scope="session")
def small() -> ExpertModel.Config:
    return ExpertModel.Config(width=4, history=5)


@pytest.fixture(scope="session")
def sizes() -> BatchVocabulary.Config:
    return SIZES


@pytest.fixture(scope="session")
def log(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> TaeLog:
    """TAEs of the first three windows, each by a snapshot of its own. Read only."""
    root: Path = tmp_path_factory.mktemp("teacher")
    log = TaeLog.Config().build(root / "log")
    config = FoundationModel.Config(
        width=8,
        representation=EMBEDDING,
        tower=12,
        history=10,
        stack=HSTUStack.Config(layers=1),
        vocabulary=SIZES,
    )
    publisher = Publisher(
        config=Publisher.Config(), model=config, workspace=workspace, registry=Registry(root / "registry"), log=log
    )
    for seed, window in enumerate(workspace.dataset.windows[:3]):
        publisher.release(config.build(inputs=workspace.inputs, seed=seed), watermark=window.start, metrics={})
        publisher.publish(window)
    return log
