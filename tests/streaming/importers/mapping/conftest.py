"""Fixtures of the tests of imports by mapping."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from streaming.dataset import Dataset
from tests.streaming.importers.mapping.shop import mapping, write_csv

Import = Callable[..., Dataset]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Import rows by the shop's mapping, with some of its keys changed."""

    def run(table: pa.Table, name: str = "shop", **changes: Any) -> Dataset:
        write_csv(table, tmp_path / "log.csv")
        return mapping(tmp_path, **changes).build(tmp_path / name)

    return run
