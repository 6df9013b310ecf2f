"""Joining by key: order does not matter, rows that differ are refused, nothing else changes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import DataError
from transfer import predictions
from transfer.predictions import Column
from transfer.reference.join import has_arm, join_arm, joined

MakeTable = Callable[..., pa.Table]
OTHER = Column("buy", "other", 0)


def rows(table: pa.Table, order: np.ndarray) -> pa.Table:
    return table.take(pa.array(order))


@pytest.fixture(scope="module")
def table(make_table: MakeTable) -> pa.Table:
    return make_table(noise={"control": 1.0}, unknown=0.2, requests=40)


@pytest.fixture(scope="module")
def other(make_table: MakeTable) -> pa.Table:
    """The same rows, with another arm."""
    table = make_table(noise={"other": 1.0}, unknown=0.2, requests=40)
    return table.drop_columns(["p_buy.other.seed1"])


@given(seed=st.integers(0, 1000))
def test_rows_find_each_other(seed: int, table: pa.Table, other: pa.Table) -> None:
    random = np.random.default_rng(seed)
    order = random.permutation(len(table))
    shuffled = rows(other, random.permutation(len(other)))
    both = joined(rows(table, order), shuffled, columns=[OTHER], source="x")
    assert both.drop_columns([OTHER.name]).equals(rows(table, order))
    assert both[OTHER.name].equals(rows(other, order)[OTHER.name])


def test_joining_again_changes_nothing(table: pa.Table, other: pa.Table) -> None:
    once = joined(table, other, columns=[OTHER], source="x")
    assert joined(once, other, columns=[OTHER], source="x").equals(once)


def test_other_rows_are_refused(table: pa.Table, other: pa.Table) -> None:
    with pytest.raises(DataError, match=r"x: 'request_id' differs between the tables \(\d+ and \d+ rows\)"):
        joined(table, other.slice(1), columns=[OTHER], source="x")
    place, field = other.column_names.index("label_buy"), other.schema.field("label_buy")
    flipped = other.set_column(place, field, pa.array(1 - other["label_buy"].to_numpy()))
    with pytest.raises(DataError, match="x: 'label_buy' differs"):
        joined(table, flipped, columns=[OTHER], source="x")
    with pytest.raises(DataError, match="'label_buy' must be in both"):
        joined(table, other.drop_columns(["label_buy"]), columns=[OTHER], source="x")


def test_an_arm_joins_a_run(table: pa.Table, other: pa.Table, tmp_path: Path) -> None:
    run, source = tmp_path / "run", tmp_path / "source"
    for surface in ("home", "search"):
        predictions.write(run, surface=surface, window=3, table=table)
        predictions.write(source, surface=surface, window=3, table=rows(other, np.arange(len(other))[::-1]))
    assert not has_arm(run, arm="other") and has_arm(run, arm="control")
    join_arm(run, source, arm="other")
    assert has_arm(run, arm="other")
    for surface in ("home", "search"):
        assert predictions.read(run, surface=surface, window=3)[OTHER.name].equals(other[OTHER.name])
    path = predictions.path_of(run, "home", 3)
    before = path.stat().st_mtime_ns
    join_arm(run, source, arm="other")
    assert path.stat().st_mtime_ns == before
    with pytest.raises(DataError, match="no predictions of arm 'third'"):
        join_arm(run, source, arm="third")


def test_a_missing_window_is_said(table: pa.Table, other: pa.Table, tmp_path: Path) -> None:
    predictions.write(tmp_path / "run", surface="home", window=3, table=table)
    predictions.write(tmp_path / "run", surface="home", window=4, table=table)
    predictions.write(tmp_path / "source", surface="home", window=3, table=other)
    with pytest.raises(DataError, match="no predictions of surface 'home' in window 4"):
        join_arm(tmp_path / "run", tmp_path / "source", arm="other")


def test_an_empty_folder_has_no_arm(tmp_path: Path) -> None:
    assert not has_arm(tmp_path, arm="control")
