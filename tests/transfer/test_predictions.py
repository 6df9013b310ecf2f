from pathlib import Path

import pyarrow as pa
import pytest

from streaming.errors import DataError
from transfer import predictions
from transfer.predictions import Column


def test_column_names_round_trip() -> None:
    column = Column("add_to.cart", "control_matched", 12)
    assert column.name == "p_add_to.cart.control_matched.seed12"
    assert Column.parse(column.name) == column
    assert Column.parse("label_buy") is None


def test_round_trip_and_listing(tmp_path: Path, make_table) -> None:
    table = make_table(unknown=0.2)
    for window in (12, 3):
        predictions.write(tmp_path, surface="home", window=window, table=table)
    (tmp_path / "predictions" / "home" / ".window=00004.parquet.partial").touch()
    assert predictions.surfaces(tmp_path) == ["home"]
    assert predictions.windows(tmp_path, "home") == [3, 12]
    assert predictions.read(tmp_path, surface="home", window=12).equals(table)
    assert predictions.read(tmp_path, surface="home", window=3, columns=["user_id"]).column_names == ["user_id"]


def test_missing_window_says_what_is_there(tmp_path: Path, make_table) -> None:
    predictions.write(tmp_path, surface="home", window=3, table=make_table())
    with pytest.raises(DataError, match="window 4; windows 3 to 3 are there"):
        predictions.read(tmp_path, surface="home", window=4)


def drop_user(table: pa.Table) -> pa.Table:
    return table.drop_columns("user_id")


def double_weight(table: pa.Table) -> pa.Table:
    return table.set_column(4, "weight", table.column("weight").cast(pa.float64()))


def null_probability(table: pa.Table) -> pa.Table:
    at = table.column_names.index("p_buy.control.seed0")
    return table.set_column(at, "p_buy.control.seed0", pa.nulls(len(table), pa.float32()))


def other_column(table: pa.Table) -> pa.Table:
    return table.append_column("score", table.column("weight"))


def no_label(table: pa.Table) -> pa.Table:
    return table.drop_columns("label_buy")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_user, "'user_id' .* is missing"),
        (double_weight, "'weight' is double, must be float"),
        (null_probability, "nulls"),
        (other_column, "'score' is not part"),
        (no_label, "'label_buy' is missing"),
    ],
)
def test_refuses_other_tables(tmp_path: Path, make_table, spoil, message: str) -> None:
    with pytest.raises(DataError, match=message):
        predictions.write(tmp_path, surface="home", window=1, table=spoil(make_table()))
    assert predictions.windows(tmp_path, "home") == []


def test_refuses_a_surface_that_is_no_folder(tmp_path: Path, make_table) -> None:
    with pytest.raises(DataError, match="cannot name a folder"):
        predictions.write(tmp_path, surface="../home", window=1, table=make_table())
