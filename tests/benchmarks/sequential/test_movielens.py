import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.sequential import movielens
from streaming.errors import DataError


def test_ratings_are_sorted_by_user_and_time_and_ties_keep_their_order(tmp_path):
    path = tmp_path / "ratings.dat"
    path.write_text("2::50::5::20\n1::70::3::9\n1::10::4::8\n1::90::1::8\n2::70::2::19\n")
    data = movielens.load(path)
    assert data.items == 4
    assert data.offsets.tolist() == [0, 3, 5]
    assert data.item_E.tolist() == [0, 3, 2, 2, 1]
    assert data.time_E is not None
    assert data.time_E.tolist() == [second * 1_000_000 for second in (8, 8, 9, 19, 20)]


def test_parquet_has_positions_and_no_times(tmp_path):
    path = tmp_path / "sequences.parquet"
    columns = {"user_id": [7, 3, 7, 3], "movie_id": [5, 5, 9, 2], "pos": [1, 0, 0, 1]}
    pq.write_table(pa.table({name: pa.array(values, pa.int16()) for name, values in columns.items()}), path)
    data = movielens.load(path)
    assert data.time_E is None
    assert data.offsets.tolist() == [0, 2, 4]
    assert data.item_E.tolist() == [1, 0, 2, 1]
    assert data.item_E.dtype == np.int64


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("ratings.dat", "1,2,3\n", "UserID::MovieID"), ("none.dat", None, "no such file")],
)
def test_other_files_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        movielens.load(path)


def test_parquet_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"user": [1]}), path)
    with pytest.raises(DataError, match="user_id, movie_id, pos"):
        movielens.load(path)
