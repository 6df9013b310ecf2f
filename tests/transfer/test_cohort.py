"""A cohort's gain is that of its rows alone."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from streaming.errors import DataError
from transfer import predictions
from transfer.cohort import cohort_sums, of_windows, write
from transfer.gain import Gain, gains
from transfer.sums import UserSums, accumulate, combine


def gained(sums: UserSums) -> list[Gain]:
    """The treated arm's gain over the control's, among users who are shown."""
    pairs = [("treated", "control")]
    return gains(sums.select(untouched=False), surface="home", span="all", pairs=pairs)


def test_as_if_there_were_no_other_rows(make_table) -> None:
    table = make_table()
    member = np.random.default_rng(0).random(len(table)) < 0.3
    (found,) = gained(cohort_sums(table, member=member, task="buy"))
    alone = accumulate(table.filter(pa.array(member)), task="buy")
    (expected,) = gained(alone)
    assert vars(found) == pytest.approx(vars(expected))
    assert 0 < found.rows < len(table) / 3


def test_windows_add_up(make_table) -> None:
    table = make_table()
    member = np.arange(len(table)) % 2 == 0
    parts = [
        cohort_sums(table.slice(start, stop), member=member[start : start + stop], task="buy")
        for start, stop in ((0, 500), (500, len(table)))
    ]
    (one,), (other,) = gained(combine(parts)), gained(cohort_sums(table, member=member, task="buy"))
    assert vars(one) == pytest.approx(vars(other))


def test_a_minority_with_another_gain_is_told_apart(make_table) -> None:
    """Arms that are alike for most and far apart for few."""
    table, column = make_table(requests=2000, users=300), "p_buy.treated.seed0"
    minority = table.column("user_id").to_numpy() % 10 == 0
    same = np.where(minority, table.column(column).to_numpy(), table.column("p_buy.control.seed0").to_numpy())
    place = table.column_names.index(column)
    table = table.set_column(place, table.schema.field(column), pa.array(same))
    table = table.drop_columns(["p_buy.treated.seed1", "p_buy.control.seed1"])
    members = {"minority": minority, "majority": ~minority}
    found = {name: gained(cohort_sums(table, member=rows, task="buy")) for name, rows in members.items()}
    assert found["minority"][0].verdict == "better"
    assert found["majority"][0].gain_pct == 0


def test_a_cohort_without_rows_has_no_gain(make_table) -> None:
    table = make_table()
    nobody = cohort_sums(table, member=np.zeros(len(table), dtype=bool), task="buy")
    assert gained(nobody) == []


def test_kept_members_are_those_of_the_windows_that_have_them(make_table, tmp_path: Path) -> None:
    tables = {window: make_table(seed=window) for window in (1, 2, 3)}
    members = {window: np.random.default_rng(window).random(len(table)) < 0.4 for window, table in tables.items()}
    for window, table in tables.items():
        predictions.write(tmp_path, surface="home", window=window, table=table)
        if window > 1:
            write(tmp_path, surface="home", window=window, members={"user.income=high": members[window]})
    found = of_windows(tmp_path, surface="home", windows=[1, 2, 3], task="buy")
    expected = combine([cohort_sums(tables[w], member=members[w], task="buy") for w in (2, 3)])
    assert list(found) == ["user.income=high"]
    np.testing.assert_array_equal(found["user.income=high"].loss, expected.loss)
    assert of_windows(tmp_path, surface="home", windows=[1], task="buy") == {}


def test_refuses_a_membership_of_another_table(make_table) -> None:
    with pytest.raises(DataError, match="membership has 3 rows"):
        cohort_sums(make_table(), member=np.ones(3, dtype=bool), task="buy")
