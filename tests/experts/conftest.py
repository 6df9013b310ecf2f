"""A small expert on the tiny data set, and a log with what a small foundation model says."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experts.arms import ARMS, ArmName
from experts.fusion import Fusion
from experts.model import ExpertModel
from experts.steps import SurfaceLearner
from foundation.hstu.layer import HSTUStack
from foundation.hstu.tower import TowerShape
from foundation.hstu.vocabulary import BatchVocabulary
from foundation.model import FoundationModel
from foundation.publish import Publisher
from hypercast.pins import Pin
from hypercast.registry import Registry
from hypercast.store.tae_log import TaeLog
from streaming.dataset import Dataset
from streaming.workspace import Workspace

EMBEDDING = 6
SIZES = BatchVocabulary.Config(default=128)
SURFACE = "surface_1"
PIN = Pin(expert=SURFACE, lineage="FM")


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


@pytest.fixture
def learner(
    tmp_path: Path,
    workspace: Workspace,
    small: ExpertModel.Config,
    sizes: BatchVocabulary.Config,
    log: TaeLog,
    embedding: int,
) -> Callable[..., SurfaceLearner]:
    """Makes a learner, of ``surface_1`` if not told otherwise.

    ``settings`` are of its configuration; the same ``run`` is the same folder.
    """

    def make(
        run: str = "run",
        *,
        surfaces: Sequence[str] = (SURFACE,),
        on: Workspace = workspace,
        log: TaeLog = log,
        arms: Sequence[ArmName] = ARMS,
        seeds: Sequence[int] = (0, 1),
        tower: TowerShape | None = None,
        registry: Registry | None = None,
        pin: Pin = PIN,
        **settings: Any,
    ) -> SurfaceLearner:
        usual = {"model": small, "vocabulary": sizes, "fusion": Fusion.Config(width=4, dropout=0.2)}
        return SurfaceLearner(
            config=SurfaceLearner.Config(
                arms=list(arms), **{**usual, "batch_size": 16, "cross_history": 9, **settings}
            ),
            surfaces=surfaces,
            workspace=on,
            log=log,
            pin=pin,
            embedding=embedding,
            seeds=list(seeds),
            tower=tower,
            registry=registry,
            run=tmp_path / run,
        )

    return make


@pytest.fixture
def other_outcomes(workspace: Workspace, tmp_path: Path) -> Workspace:
    """The data set with all labels of its second window turned round."""
    copy = Dataset.open(shutil.copytree(workspace.dataset.path, tmp_path / "data"))
    file = copy.request_file(workspace.dataset.windows[1].index)
    table = pq.read_table(file)
    rows = table.to_pylist()
    for row in rows:
        labels = row["supervision"]["label_purchase"]
        row["supervision"]["label_purchase"] = [1.0 - label for label in labels]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    return Workspace(copy)
