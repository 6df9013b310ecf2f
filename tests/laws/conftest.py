"""A small platform to mutate: the real loop in this process, without MLflow."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from experts.arms import ARMS
from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.engine import LocalEngine
from hypercast.runtime.jobs import ExpertJob, FoundationJob
from hypercast.runtime.platform import Platform
from hypercast.store.tae_log import TaeLog
from streaming.dataset import Dataset, read_parquet
from streaming.history_check import seal
from streaming.importers.synthetic import Synthetic
from transfer import predictions
from transfer.monitor import Monitor
from transfer.predictions import Column

Row = dict[str, Any]
Change = Callable[[int, list[Row]], list[Row]]
"""Given a window's index and its rows, which it may change, returns the rows to have instead."""

TRAINED = 3
"""Windows that the platform has finished before a window is scored."""
FAST = {"learning_rate": 1e-2, "table_learning_rate": 0.1}
"""So that what is learned in a few dozen steps decides the scores."""
SETTINGS: dict[str, Any] = {
    "name": "laws",
    "spans": {},
    "foundation": {
        "batch_size": 8,
        "optimiser": FAST,
        "publisher": {"keep": 9, "dtype": "float32"},  # half precision would blow a last bit up to a thousandth
        "model": {
            "width": 16,
            "representation": 8,
            "tower": 16,
            "history": 16,
            "stack": {"layers": 1},
            "vocabulary": {"default": 64},
        },
    },
    "expert": {
        "batch_size": 8,
        "optimiser": FAST,
        "residual_optimiser": FAST,
        "cross_history": 8,
        "finetune_window": 3,
        "cohorts": {"windows": 1, "least_rows": 5, "least_positives": 1, "confidence": 0.001},
        "vocabulary": {"default": 64},
        "fusion": {"width": 8},
        "model": {"width": 8, "history": 8, "backbone": {"hidden": [8]}},
    },
}


@dataclass(frozen=True)
class Played:
    """A run folder and what lies in it; ``arms`` of its experts."""

    run: Path
    dataset: Path
    arms: tuple[str, ...] = ARMS

    @property
    def config(self) -> PlatformConfig:
        expert = {**SETTINGS["expert"], "arms": list(self.arms)}
        return PlatformConfig.model_validate(
            {**SETTINGS, "expert": expert, "dataset": {"path": self.dataset}, "run": self.run}
        )

    @property
    def registry(self) -> Registry:
        return Registry(self.run / "registry")

    @property
    def log(self) -> TaeLog:
        return TaeLog(self.run / "tae_log")

    def go(self, *, windows: int) -> "Played":
        """Run the platform's loop over the first ``windows`` windows."""
        platform = Platform(self.config)
        first = platform.dataset.windows[:windows]
        platform._loop(LocalEngine(), MagicMock(spec=Monitor, complete=-1), first, lambda message, share: None)
        return self

    def elsewhere(self, run: Path, dataset: Path) -> "Played":
        """An empty run folder for the same platform, on another data set."""
        return replace(self, run=run, dataset=dataset)

    def copied(self, run: Path, dataset: Path) -> "Played":
        """What was trained, in a folder of its own, to go on with on another data set."""
        shutil.copytree(self.run, run)
        return replace(self, run=run, dataset=dataset)

    def foundation(self) -> FoundationJob:
        return FoundationJob(self.config, self.run)

    def experts(self) -> ExpertJob:
        return ExpertJob(self.config, self.run, Dataset.open(self.dataset).config.surfaces)

    def predict(self, window: int) -> pd.DataFrame:
        """Let every arm predict ``window`` from what the log holds of it."""
        experts = self.experts()
        for trainer in experts.trainers.values():
            trainer.learner.evaluate(experts.workspace.dataset.window(window))
        return self.said(window)

    def score(self, window: int) -> pd.DataFrame:
        """Publish ``window`` and let every arm predict it."""
        self.foundation().publish(window)
        return self.predict(window)

    def said(self, window: int) -> pd.DataFrame:
        """Predictions of a window: one row a candidate, one column an arm and task."""
        tables = [predictions.read(self.run, surface=s, window=window) for s in predictions.surfaces(self.run)]
        table = pa.concat_tables(tables)
        columns = [name for name in table.column_names if Column.parse(name)]
        keys = ["request_id", "candidate_id"]
        return table.select([*keys, *columns]).to_pandas().set_index(keys).sort_index()

    def labels(self, window: int) -> pd.DataFrame:
        """Labels, weights and strata that the prediction tables of a window hold."""
        tables = [predictions.read(self.run, surface=s, window=window) for s in predictions.surfaces(self.run)]
        table = pa.concat_tables(tables)
        return table.drop_columns([name for name in table.column_names if Column.parse(name)]).to_pandas()

    def weights(self, *, until: int) -> dict[str, str]:
        """Digests of the snapshots with watermarks up to ``until``."""
        return {
            snapshot.name: snapshot.manifest["weights_digest"]
            for snapshot in self.registry.list("FM")
            if snapshot.watermark <= until
        }


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = Synthetic.Config(users=16, items=24, windows=5, candidates=6)
    return config.build(tmp_path_factory.mktemp("laws") / "data")


@pytest.fixture(scope="session")
def full(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """The platform run over the first four windows."""
    return Played(tmp_path_factory.mktemp("full"), dataset.path).go(windows=TRAINED + 1)


@pytest.fixture(scope="session")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """The platform run over the first three windows. Copy its folder before using it."""
    return Played(tmp_path_factory.mktemp("trained"), dataset.path).go(windows=TRAINED)


@pytest.fixture(scope="session")
def fresh(dataset: Dataset) -> Callable[[Path, tuple[str, ...]], Played]:
    """A platform in an empty run folder, with those arms."""
    return lambda run, arms: Played(run, dataset.path, arms)


@pytest.fixture
def resumed(trained: Played, tmp_path: Path) -> Callable[[Path], Played]:
    """What was trained, to go on with on another data set."""
    return lambda dataset: trained.copied(tmp_path / "resumed", dataset)


@pytest.fixture(scope="session")
def base(trained: Played, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """What ``resumed`` predicts of the fourth window when nothing is changed."""
    return trained.copied(tmp_path_factory.mktemp("base") / "run", dataset.path).score(TRAINED + 1)


@pytest.fixture(scope="session")
def arms() -> set[str]:
    """Everything that predicts."""
    return {*ARMS, "fm_head"}


@pytest.fixture(scope="session")
def moved() -> Callable[[pd.DataFrame, pd.DataFrame], set[str]]:
    """Arms of which some prediction differs in some bit, between tables of the same rows."""

    def compare(one: pd.DataFrame, other: pd.DataFrame) -> set[str]:
        assert len(one) > 0 and one.index.equals(other.index) and list(one.columns) == list(other.columns)
        return {Column.parse(name).arm for name in one.columns if not one[name].equals(other[name])}

    return compare


@pytest.fixture
def changed(dataset: Dataset, tmp_path: Path) -> Callable[..., Path]:
    """Make a copy of a data set in which the rows of some windows are others."""

    def change(
        *, source: Path = dataset.path, requests: Change | None = None, engagements: Change | None = None
    ) -> Path:
        copy = Dataset.open(shutil.copytree(source, tmp_path / f"data{len(list(tmp_path.glob('data*')))}"))
        for window in copy.windows:
            _rewrite(copy.request_file(window.index), requests, window.index)
            _rewrite(copy.engagement_file(window.index), engagements, window.index)
        seal(copy)
        return copy.path

    return change


def _rewrite(file: Path, change: Change | None, window: int) -> None:
    if change is not None:
        table = read_parquet(file)
        rows = change(window, table.to_pylist())
        if rows != table.to_pylist():
            pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
