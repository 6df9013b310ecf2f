"""A data set on disk, read window by window. Reading never changes anything on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from streaming import config as configuration
from streaming import label_parts
from streaming.errors import DataError
from streaming.files import sha256_of
from streaming.schema import DatasetConfig, microseconds


@dataclass(frozen=True)
class Window:
    """A span of event time: [start, end), in microseconds UTC."""

    index: int
    start: int
    end: int


class Dataset:
    """A data set in the format of ``streaming.schema``. Build one by :meth:`open`.

    >>> dataset = Dataset.open("data/journey")
    >>> for window in dataset.windows:
    ...     requests = dataset.requests(window.index, columns=["request_id", "time"])
    """

    def __init__(self, *, path: Path, config: DatasetConfig) -> None:
        self.path = path
        self.config = config
        boundaries = [microseconds(boundary) for boundary in config.window_boundaries]
        self.windows = [
            Window(index=index, start=start, end=end)
            for index, (start, end) in enumerate(pairwise(boundaries), start=config.first_window)
        ]

    @staticmethod
    def open(path: Path | str) -> "Dataset":
        """Read ``dataset.yaml`` in the folder ``path``, and nothing else.

        Raises:
            DataError: there is no such folder, or no ``dataset.yaml`` in it.
            ConfigError: ``dataset.yaml`` does not fit :class:`DatasetConfig`.
        """
        folder = Path(path)
        file = folder / "dataset.yaml"
        if not file.is_file():
            raise DataError(
                f"{folder}: not a data set, there is no {file.name} in it. Give the folder that an import wrote, "
                "for example one made by `hypercast data import synthetic --out data/synthetic`."
            )
        return Dataset(path=folder, config=configuration.load(file, DatasetConfig))

    def window(self, index: int) -> Window:
        """The window of that index.

        Raises:
            DataError: the data set has no such window.
        """
        position = index - self.config.first_window
        if not 0 <= position < len(self.windows):
            first, last = self.windows[0].index, self.windows[-1].index
            raise DataError(f"{self.path}: there is no window {index}; allowed are {first} to {last}.")
        return self.windows[position]

    def teaching(self, window: Window) -> list[Window]:
        """The windows whose requests' labels can become known in ``window``, oldest first."""
        delay = max(task.delay_seconds for task in self.config.tasks) * 1_000_000
        return [made for made in self.windows if made.start <= window.start < made.end + delay]

    def request_file(self, index: int) -> Path:
        """Path of the window's request part."""
        return part_file(self.path, "requests", self.window(index).index)

    def engagement_file(self, index: int) -> Path:
        """Path of the window's engagement part."""
        return part_file(self.path, "engagements", self.window(index).index)

    def label_file(self, index: int) -> Path:
        """Path of the window's label part (:mod:`streaming.label_parts`), which not every data set has."""
        return label_parts.path_of(self.path, self.window(index).index)

    def requests(self, index: int, *, columns: Sequence[str] | None = None) -> pa.Table:
        """The window's requests, one row each (``schema.request_schema``), sorted by (time, request_id).

        Labels that are kept apart from their requests (:mod:`streaming.label_parts`) are in their places.

        Args:
            columns: Names to read, in this order; a field of ``supervision`` is ``supervision.NAME``. None = all.

        Raises:
            DataError: no such window, file or column.
        """
        if self._late_labels(index) and (columns is None or any(name.startswith("supervision") for name in columns)):
            return self._with_late_labels(index, columns)
        return read_parquet(self.request_file(index), columns=columns)

    def engagements(self, index: int) -> pa.Table:
        """The window's engagements, one row each (``schema.engagement_schema``), sorted by (user_id, time)."""
        return read_parquet(self.engagement_file(index))

    def items(self) -> pa.Table:
        """``item_id`` and the item attributes, sorted by id."""
        return read_parquet(self.path / "items.parquet")

    def users(self) -> pa.Table:
        """``user_id`` and the user attributes, sorted by id."""
        return read_parquet(self.path / "users.parquet")

    def requests_digest(self, index: int) -> str:
        """Hexadecimal SHA-256 of the window's request part: equal digests mean equal rows in equal order."""
        file = self.request_file(index)
        if not file.is_file():
            raise missing_file(file)
        return sha256_of(file)

    def _late_labels(self, index: int) -> list[Path]:
        """Label parts that may know of the window's requests, oldest first."""
        made = self.window(index)
        until = made.end + max(task.delay_seconds for task in self.config.tasks) * 1_000_000
        later = (window.index for window in self.windows if made.start <= window.start < until)
        return [path for path in (label_parts.path_of(self.path, window) for window in later) if path.is_file()]

    def _with_late_labels(self, index: int, columns: Sequence[str] | None) -> pa.Table:
        labels = pa.concat_tables([read_parquet(path) for path in self._late_labels(index)])
        table = label_parts.join(read_parquet(self.request_file(index)), labels, self.config)
        if columns is None:
            return table
        _require(self.request_file(index), table.schema, columns)
        return select(table, columns)

    def __repr__(self) -> str:
        return f"Dataset({self.config.name!r}, {len(self.windows)} windows, path={str(self.path)!r})"


def part_file(folder: Path, log: str, window: int) -> Path:
    """Path of a window's part of a log (``requests`` or ``engagements``)."""
    return folder / log / f"window={window:05d}" / "part-0.parquet"


def missing_file(path: Path) -> DataError:
    """The error for a file that the format requires and that is not there."""
    return DataError(
        f"{path}: the file is missing. Every window has a request and an engagement part, even an empty one; "
        "import the data set again."
    )


def unreadable(path: Path, error: Exception) -> DataError:
    """The error for a file that is damaged, or no Parquet."""
    return DataError(f"{path}: not a readable Parquet file ({error}). Import the data set again.")


def read_parquet(path: Path, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file.

    Raises:
        DataError: the file is missing, is not Parquet, or lacks one of ``columns``.
    """
    if not path.is_file():
        raise missing_file(path)
    try:
        with pq.ParquetFile(path) as file:
            if columns is None:
                return file.read()
            _require(path, file.schema_arrow, columns)
            table = file.read(columns=list(columns))
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        raise unreadable(path, error) from None
    top = dict.fromkeys(name.partition(".")[0] for name in columns)
    return table.select(list(top))


def select(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Some columns of a table, those of a struct by ``STRUCT.NAME``, in the order in which they are first named."""
    chosen = {}
    for top in dict.fromkeys(name.partition(".")[0] for name in columns):
        column = table[top]
        if top not in columns:
            struct = column.combine_chunks()
            fields = [field for field in struct.type if f"{top}.{field.name}" in columns]
            column = pa.StructArray.from_arrays([struct.field(field.name) for field in fields], fields=fields)
        chosen[top] = column
    return pa.table(chosen)


def _require(path: Path, schema: pa.Schema, columns: Sequence[str]) -> None:
    for name in columns:
        top, _, child = name.partition(".")
        known = top in schema.names and (not child or schema.field(top).type.get_field_index(child) >= 0)
        if not known:
            raise DataError(f"{path}: column '{name}' is missing; the file has {', '.join(schema.names)}.")
