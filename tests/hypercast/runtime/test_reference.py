"""Boosted trees join a finished run, alone and on its teacher."""

from pathlib import Path

import numpy as np
import pytest

from hypercast.runtime import reference
from transfer import predictions
from transfer.gain import BOOSTED, FM_HEAD
from transfer.predictions import Column
from transfer.reference.boosting import LIGHTGBM


@pytest.fixture
def run(copy_of_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    return copy_of_run


def said(run: Path, arm: str, window: int) -> np.ndarray:
    tables = [predictions.read(run, surface=s, window=window) for s in predictions.surfaces(run)]
    return np.concatenate([table[Column("purchase", arm, 0).name].to_numpy() for table in tables])


def quiet(message: str, share: float) -> None:
    """No progress to show."""


def test_they_join_the_runs_predictions_once(run: Path) -> None:
    reference.add_lightgbm(run, progress=quiet)
    reference.add_boosted(run, progress=quiet)
    np.testing.assert_allclose(said(run, BOOSTED, 1), said(run, FM_HEAD, 1), rtol=1e-5)  # the teacher's word, at first
    assert not np.allclose(said(run, BOOSTED, 4), said(run, FM_HEAD, 4), rtol=1e-2)
    assert not np.allclose(said(run, BOOSTED, 4), said(run, LIGHTGBM, 4), rtol=1e-2)

    def never(message: str, share: float) -> None:
        raise AssertionError("trained again")

    reference.add_lightgbm(run, progress=never)
    reference.add_boosted(run, progress=never)


def test_lightgbm_is_trained_once_for_runs_that_share_a_source(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "shared"
    reference.add_lightgbm(run, progress=quiet, source=source)
    first = said(run, LIGHTGBM, 4)
    before = {file: file.stat().st_mtime_ns for file in source.rglob("*.parquet")}
    table = predictions.read(run, surface="surface_0", window=4)
    predictions.write(
        run, surface="surface_0", window=4, table=table.drop_columns([Column("purchase", LIGHTGBM, 0).name])
    )
    reference.add_lightgbm(run, progress=quiet, source=source)
    assert {file: file.stat().st_mtime_ns for file in source.rglob("*.parquet")} == before
    np.testing.assert_array_equal(said(run, LIGHTGBM, 4), first)
