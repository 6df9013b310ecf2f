"""Changed copies of a data set, LightGBM small enough for it, and a teacher that says what it is told to."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from streaming.dataset import Dataset, read_parquet
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer import predictions
from transfer.gain import FM_HEAD
from transfer.predictions import Column, prediction_table
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

    def run(
        dataset: Dataset,
        *,
        windows: int | None = None,
        seed: int = 0,
        config: Boosting.Config = small,
        teacher: Path | None = None,
    ) -> Path:
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        boosting = config.build(workspace=Workspace(dataset), task=TASK, seed=seed, run=folder, teacher=teacher)
        boosting.predict_all(dataset.windows[:windows])
        return folder

    return run


@pytest.fixture
def attributed(tiny_dataset: Dataset, changed: Callable[..., Dataset]) -> Dataset:
    """The tiny data set with attribution windows of a week: labels of 1 are known at once, those of 0 after it."""

    def open_zeros(window: int, row: Row) -> None:
        labels, times = (row["supervision"][name] for name in (f"label_{TASK}", f"label_time_{TASK}"))
        times[:] = [time if label else None for label, time in zip(labels, times, strict=True)]
        labels[:] = [label or None for label in labels]

    copy = changed(tiny_dataset, requests=open_zeros)
    file = copy.path / "dataset.yaml"
    described = yaml.safe_load(file.read_text(encoding="utf-8"))
    described["tasks"][0] |= {"attribution_seconds": 7 * 86_400, "delay_seconds": 7 * 86_400}
    file.write_text(yaml.safe_dump(described), encoding="utf-8")
    return Dataset.open(copy.path)


@pytest.fixture
def teach(workspace: Workspace, tmp_path: Path) -> Callable[..., Path]:
    """Write a run of the tiny data set whose teacher's logits are ``says(requests)``, float ``[C]``."""

    def write(says: Callable[[Requests], np.ndarray]) -> Path:
        run = tmp_path / f"taught{len(list(tmp_path.glob('taught*')))}"
        for window, (index, surface) in itertools.product(
            workspace.dataset.windows, enumerate(workspace.inputs.surfaces)
        ):
            requests = workspace.requests(window.index).on_surface(index)
            said = {Column(TASK, FM_HEAD, 0): 1 / (1 + np.exp(-says(requests)))}
            table = prediction_table(requests, said, tasks=[task.name for task in workspace.plan.tasks])
            predictions.write(run, surface=surface, window=window.index, table=table)
        return run

    return write


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
