"""Boosted trees join a finished run, and their mean with its teacher."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hypercast.runtime import reference
from streaming.errors import ConfigError, DataError
from transfer import predictions
from transfer.gain import BLENDED, FM_HEAD
from transfer.predictions import Column
from transfer.reference.blend import blend
from transfer.reference.boosting import LIGHTGBM, LIGHTGBM_TREATED


@pytest.fixture
def run(copy_of_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    return copy_of_run


def said(run: Path, arm: str, window: int) -> np.ndarray:
    tables = [predictions.read(run, surface=s, window=window) for s in predictions.surfaces(run)]
    return np.concatenate([table[Column("purchase", arm, 0).name].to_numpy() for table in tables])


def quiet(message: str, share: float) -> None:
    """No progress to show."""


def never(message: str, share: float) -> None:
    raise AssertionError("trained again")


def test_they_join_the_runs_predictions_once(run: Path) -> None:
    reference.add_trees(run, progress=quiet)
    assert not np.allclose(said(run, LIGHTGBM, 4), said(run, FM_HEAD, 4), rtol=1e-2)
    np.testing.assert_array_equal(said(run, BLENDED, 4), blend(said(run, LIGHTGBM, 4), said(run, FM_HEAD, 4)))
    reference.add_trees(run, progress=never)


def test_trees_that_read_the_teacher_join_where_they_are_asked_for(run: Path) -> None:
    reference.add_trees(run, progress=quiet, treated=True)
    treated = said(run, LIGHTGBM_TREATED, 4)
    (fit, *_) = sorted((run / "reference" / LIGHTGBM_TREATED / "trees").glob("*.txt"))
    lines = fit.read_text().splitlines()
    (last,) = (line.removeprefix("max_feature_idx=") for line in lines if line.startswith("max_feature_idx="))
    asked = {number for line in lines if line.startswith("split_feature=") for number in line[14:].split()}
    assert last in asked  # the teacher's column is the last
    reference.add_trees(run, progress=never, treated=True)
    np.testing.assert_array_equal(said(run, LIGHTGBM_TREATED, 4), treated)


def test_they_read_what_the_teacher_says_now(run: Path) -> None:
    reference.add_trees(run, progress=quiet, treated=True)
    before = said(run, LIGHTGBM_TREATED, 4)
    teacher, treated = (Column("purchase", arm, 0).name for arm in (FM_HEAD, LIGHTGBM_TREATED))
    for surface in predictions.surfaces(run):
        for window in predictions.windows(run, surface):
            table = predictions.read(run, surface=surface, window=window).drop_columns([treated])
            place = table.column_names.index(teacher)
            nothing = pa.array(np.full(len(table), 0.5, dtype=np.float32))
            table = table.set_column(place, table.schema.field(teacher), nothing)
            predictions.write(run, surface=surface, window=window, table=table)
    reference.add_trees(run, progress=quiet, treated=True)
    assert not np.array_equal(said(run, LIGHTGBM_TREATED, 4), before)
    np.testing.assert_array_equal(said(run, BLENDED, 4), blend(said(run, LIGHTGBM, 4), said(run, FM_HEAD, 4)))


def test_trees_are_grown_once_for_runs_that_share_a_source(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "shared"
    reference.add_trees(run, progress=quiet, source=source)
    first = said(run, LIGHTGBM, 4)
    column = Column("purchase", LIGHTGBM, 0).name
    for surface in predictions.surfaces(run):
        for window in predictions.windows(run, surface):
            table = predictions.read(run, surface=surface, window=window)
            predictions.write(run, surface=surface, window=window, table=table.drop_columns([column]))
    reference.add_trees(run, progress=never, source=source)
    np.testing.assert_array_equal(said(run, LIGHTGBM, 4), first)


def test_a_run_that_has_predicted_nothing(run: Path) -> None:
    shutil.rmtree(run / "predictions")
    with pytest.raises(DataError, match=r"nothing was predicted there yet.*hypercast run"):
        reference.add_trees(run, progress=never)


def test_a_folder_that_is_no_run_stays_away(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"platform\.yaml"):
        reference.add_trees(tmp_path / "typo", progress=never)
    assert not (tmp_path / "typo").exists()
