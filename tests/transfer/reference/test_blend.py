"""Trees and teacher, half and half."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transfer.conftest import _make_table as make_table
from transfer import predictions
from transfer.predictions import Column
from transfer.reference import blend
from transfer.reference.boosting import LIGHTGBM

probabilities = st.floats(0, 1, width=32)


@given(one=probabilities, other=probabilities)
def test_the_logit_is_the_mean_of_both(one: float, other: float) -> None:
    trees, teacher = np.array([one], np.float32), np.array([other], np.float32)
    said = float(blend.blend(trees, teacher)[0])
    assert min(one, other) - 1e-6 <= said <= max(one, other) + 1e-6
    np.testing.assert_array_equal(blend.blend(trees, teacher), blend.blend(teacher, trees))
    if 0.01 < one < 0.99 and 0.01 < other < 0.99:
        odds = np.sqrt(one / (1 - one) * other / (1 - other))
        assert said == pytest.approx(odds / (1 + odds), rel=1e-4)


def test_it_joins_tables_that_have_both(tmp_path: Path) -> None:
    noise = {"control": 1.0, "fm_head": 0.6, LIGHTGBM: 0.7}
    table = make_table(seed=1, noise=noise, seeds=1, requests=50)
    predictions.write(tmp_path, surface="home", window=1, table=table)
    predictions.write(tmp_path, surface="home", window=2, table=table.drop_columns([Column("buy", LIGHTGBM, 0).name]))
    blend.add_blended(tmp_path)
    made = predictions.read(tmp_path, surface="home", window=1)
    expected = blend.blend(*(table[Column("buy", arm, 0).name].to_numpy() for arm in (LIGHTGBM, "fm_head")))
    np.testing.assert_array_equal(made[Column("buy", "blended", 0).name].to_numpy(), expected)
    assert Column("buy", "blended", 0).name not in predictions.read(tmp_path, surface="home", window=2).column_names
    file = predictions.path_of(tmp_path, "home", 1)
    before = file.stat().st_mtime_ns
    blend.add_blended(tmp_path)
    assert file.stat().st_mtime_ns == before
