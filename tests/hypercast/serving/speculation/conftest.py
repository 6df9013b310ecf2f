"""Speculation over the small platform of ``played``, and data sets whose future is another."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hypercast.registry import Registry
from hypercast.serving.speculation.speculator import Speculator
from streaming.dataset import Dataset, Window, read_parquet
from streaming.history_check import seal

Row = dict[str, Any]
CONFIG: dict[str, Any] = {
    "predictor": {"source": {"place": "store", "popular": 10}, "ranker": {"spans": 2, "negatives": 0.5}},
    "budget": {"share": 0.5},
    "batch_size": 5,
}


@pytest.fixture(scope="session")
def window(played) -> Window:
    """The first that nothing was trained on."""
    return played.next_window


@pytest.fixture(scope="session")
def speculator(played) -> Callable[..., Speculator]:
    """One on a data set, by default the one that was played, with some keys of its configuration changed."""

    def make(dataset: Path = played.dataset, **changed: Any) -> Speculator:
        return Speculator.Config.model_validate({**CONFIG, **changed}).build(
            model=played.config.foundation.model,
            workspace=played.config.workspace(Dataset.open(dataset)),
            registry=Registry(played.run / "registry"),
        )

    return make


@pytest.fixture
def rewritten(played, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the data set with ``change(row)`` called on each row of a log with ``since <= time < before``."""

    def rewrite(log: str, change: Callable[[Row], None], *, since: int = 0, before: int = 1 << 62) -> Path:
        copy = Dataset.open(shutil.copytree(played.dataset, tmp_path / f"data{len(list(tmp_path.iterdir()))}"))
        for each in copy.windows:
            file = copy.request_file(each.index) if log == "requests" else copy.engagement_file(each.index)
            table = read_parquet(file)
            rows, times = table.to_pylist(), table["time"].cast(pa.int64()).to_pylist()
            for row, time in zip(rows, times, strict=True):
                if since <= time < before:
                    change(row)
            pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
        seal(copy)
        return copy.path

    return rewrite
