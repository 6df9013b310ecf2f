"""Changed copies of a data set, and LightGBM small enough for it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.dataset import Dataset, read_parquet
from streaming.workspace import Workspace
from transfer.reference.boosting import Boosting

Row = dict[str, Any]
TASK = "purchase"


@pytest.fixture(scope="session")
def small() -> Boosting.Config:
    return Boosting.Config(
        refit_every=2, rounds=40, patience=10, learning_rate=0.2, leaves=7, min_rows=10, l2=1.0, rate_strength=4.0
    )


@pytest.fixture
def boost(small: Boosting.Config, tmp_path: Path) -> Callable[..., Path]:
    """Let LightGBM predict a data set's first windows; returns the run folder."""

    def run(dataset: Dataset, *, windows: int | None = None, seed: int = 0, config: Boosting.Config = small) -> Path:
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        boosting = config.build(workspace=Workspace(dataset), task=TASK, seed=seed, run=folder)
        boosting.predict_all(dataset.windows[:windows])
        return folder

    return run


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Dataset]:
    """Make a copy of a data set in which some rows are others."""

    def change(
        dataset: Dataset,
        *,
        requests: Callable[[int, Row], None] | None = None,
        engagements: Callable[[int, Row], None] | None = None,
    ) -> Dataset:
        copy = Dataset.open(shutil.copytree(dataset.path, tmp_path / f"data{len(list(tmp_path.glob('data*')))}"))
        for window in copy.windows:
            _rewrite(copy.request_file(window.index), requests, window.index)
            _rewrite(copy.engagement_file(window.index), engagements, window.index)
        return copy

    return change


def _rewrite(file: Path, change: Callable[[int, Row], None] | None, window: int) -> None:
    if change is None:
        return
    table = read_parquet(file)
    rows = table.to_pylist()
    for row in rows:
        change(window, row)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
