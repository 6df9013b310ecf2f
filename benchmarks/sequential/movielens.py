"""MovieLens-1M as one sequence of movies a user, in the order in which the user rated them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks.sequential.sequences import ItemSequences
from streaming.errors import DataError

COLUMNS = ("user_id", "movie_id", "pos")


def load(path: Path) -> ItemSequences:
    """Read GroupLens ``ratings.dat`` (``UserID::MovieID::Rating::Timestamp``), or a Parquet file with the columns
    ``user_id``, ``movie_id`` and ``pos``, the place in the user's own sequence (which says nothing of times).

    Ratings of one user and second keep the order of the file.

    Raises:
        DataError: the file is missing or looks otherwise.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give GroupLens ratings.dat or a Parquet file with {', '.join(COLUMNS)}")
    user, movie, order, has_times = _parquet(path) if path.suffix == ".parquet" else _ratings(path)
    rows = np.lexsort((order, user))
    movies, item_E = np.unique(movie[rows], return_inverse=True)
    _, count = np.unique(user, return_counts=True)
    return ItemSequences(
        item_E=item_E.astype(np.int64),
        time_E=order[rows] * 1_000_000 if has_times else None,
        offsets=np.concatenate([[0], count.cumsum()]).astype(np.int64),
        items=len(movies),
    )


def _parquet(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    names = pq.read_schema(path).names
    if not set(COLUMNS) <= set(names):
        raise DataError(f"{path}: has the columns {', '.join(names)}; expected {', '.join(COLUMNS)}")
    table = pq.read_table(path, columns=list(COLUMNS))
    user, movie, place = (table[name].to_numpy().astype(np.int64) for name in COLUMNS)
    return user, movie, place, False


def _ratings(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    # Split at single colons, every second column is empty.
    names = ["user", "", "movie", "", "rating", "", "time"]
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=names),
            parse_options=pyarrow.csv.ParseOptions(delimiter=":"),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=["user", "movie", "time"], column_types=dict.fromkeys(names, pa.int64())
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}: not lines of UserID::MovieID::Rating::Timestamp, as 1::1193::5::978300760: {error}"
        ) from None
    user, movie, time = (table[name].to_numpy() for name in ("user", "movie", "time"))
    return user, movie, time, True
