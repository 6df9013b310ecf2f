"""Writing a data set: whole and valid, or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from streaming.config import dump
from streaming.dataset import Dataset, part_file
from streaming.errors import DataError
from streaming.files import write_directory
from streaming.history_check import seal
from streaming.schema import CATEGORICAL_TYPES, DatasetConfig, engagement_schema, entity_schema, request_schema
from streaming.validate import validate


class DatasetWriter:
    """Fills the folder of one new data set. Handed out by :func:`write_dataset`.

    Every table is cast to the format's schema; a column that is missing or cannot be cast without loss is a
    :class:`DataError`.
    """

    def __init__(self, *, path: Path, config: DatasetConfig) -> None:
        self.path = path
        self.config = config

    def items(self, table: pa.Table) -> None:
        """Write ``items.parquet``: ``item_id`` int64 and the item attributes, sorted by id."""
        names = self.config.item_attributes
        self._write(self.path / "items.parquet", table, entity_schema("item_id", names, _types(table, names)))

    def users(self, table: pa.Table) -> None:
        """Write ``users.parquet``: ``user_id`` int64 and the user attributes, sorted by id."""
        names = self.config.user_attributes
        self._write(self.path / "users.parquet", table, entity_schema("user_id", names, _types(table, names)))

    def requests(self, window: int, table: pa.Table) -> None:
        """Write a window's requests, sorted by (time, request_id)."""
        schema = request_schema(self.config, context_types=_types(table, self.config.context))
        self._write(part_file(self.path, "requests", window), table, schema)

    def engagements(self, window: int, table: pa.Table) -> None:
        """Write a window's engagements, sorted by (user_id, time)."""
        self._write(part_file(self.path, "engagements", window), table, engagement_schema(self.config))

    def extra(self, name: str, table: pa.Table) -> None:
        """Keep a table that is not part of the format, as it is, in ``extra/NAME.parquet``."""
        self._write(self.path / "extra" / f"{name}.parquet", table, table.schema)

    def _write(self, file: Path, table: pa.Table, schema: pa.Schema) -> None:
        lacking = [name for name in schema.names if name not in table.column_names]
        if lacking:
            raise DataError(f"{file}: column '{lacking[0]}' is missing. Its columns must be {', '.join(schema.names)}.")
        try:
            table = table.select(schema.names).cast(schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise DataError(f"{file}: the columns do not fit the schema: {error}. It must be:\n{schema}") from None
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file, compression="zstd", compression_level=1)


def write_dataset(path: Path, config: DatasetConfig, fill: Callable[[DatasetWriter], None]) -> Dataset:
    """Let ``fill`` write every file of a new data set; validate it; move it to ``path`` in one step.

    Everything happens in a hidden folder beside ``path`` first: if ``fill`` or the validation fails, nothing is left.

    Raises:
        DataError: ``path`` exists already, or what ``fill`` wrote breaks the format.
    """
    refuse_existing(path)

    def build(partial: Path) -> None:
        try:
            (partial / "dataset.yaml").write_text(dump(config), encoding="utf-8")
            fill(DatasetWriter(path=partial, config=config))
            written = Dataset.open(partial)
            validate(written)
            seal(written)
        except BaseException:
            shutil.rmtree(partial)
            raise

    write_directory(path, build)
    return Dataset.open(path)


def refuse_existing(path: Path) -> None:
    """Raise a :class:`DataError` if something is already at ``path``; importers call it before any long work."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise DataError(
            f"{path}: exists already, and an import never overwrites. Give another folder, or delete this one first."
        )


def _types(table: pa.Table, names: list[str]) -> dict[str, pa.DataType]:
    found = {name: table.schema.field(name).type for name in names if name in table.column_names}
    return {name: kind for name, kind in found.items() if kind in CATEGORICAL_TYPES}
