import hashlib
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.dataset import Dataset
from streaming.errors import ConfigError, DataError
from streaming.schema import engagement_schema, request_schema
from streaming.writer import DatasetWriter, write_dataset


def copy_into(writer: DatasetWriter, dataset: Dataset) -> None:
    writer.items(dataset.items())
    writer.users(dataset.users())
    for window in dataset.windows:
        writer.requests(window.index, dataset.requests(window.index))
        writer.engagements(window.index, dataset.engagements(window.index))


def test_windows_tile_time(tiny_dataset: Dataset) -> None:
    windows = tiny_dataset.windows
    assert [window.index for window in windows] == [1, 2, 3, 4, 5, 6]
    assert all(earlier.end == later.start for earlier, later in pairwise(windows))
    assert tiny_dataset.window(3) == windows[2]


@pytest.mark.parametrize("index", [0, 7, -1])
def test_a_window_that_is_not_there(tiny_dataset: Dataset, index: int) -> None:
    with pytest.raises(DataError, match="allowed are 1 to 6"):
        tiny_dataset.requests(index)


def test_parts_have_the_schema(tiny_dataset: Dataset) -> None:
    checked = request_schema(tiny_dataset.config).append(pa.field("history_check", pa.int64()))
    assert tiny_dataset.requests(2).schema == checked
    assert tiny_dataset.engagements(2).schema == engagement_schema(tiny_dataset.config)


def test_some_columns(tiny_dataset: Dataset) -> None:
    table = tiny_dataset.requests(1, columns=["supervision.weight", "supervision.label_purchase", "time"])
    assert table.column_names == ["supervision", "time"]
    assert {field.name for field in table.schema.field("supervision").type} == {"weight", "label_purchase"}
    for name in ("colour", "supervision.colour"):
        with pytest.raises(DataError, match=rf"part-0\.parquet: column '{name}' is missing"):
            tiny_dataset.requests(1, columns=[name])


def test_digest_is_of_the_file(tiny_dataset: Dataset) -> None:
    data = tiny_dataset.request_file(4).read_bytes()
    assert tiny_dataset.requests_digest(4) == hashlib.sha256(data).hexdigest()
    assert tiny_dataset.requests_digest(4) != tiny_dataset.requests_digest(5)


def test_open_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a data set"):
        Dataset.open(tmp_path)
    (tmp_path / "dataset.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError, match="description"):
        Dataset.open(tmp_path)


def test_missing_and_broken_files(tiny_dataset: Dataset, tmp_path: Path) -> None:
    dataset = Dataset(path=tmp_path, config=tiny_dataset.config)
    with pytest.raises(DataError, match=r"items\.parquet: the file is missing"):
        dataset.items()
    with pytest.raises(DataError, match="the file is missing"):
        dataset.requests_digest(1)
    (tmp_path / "users.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        dataset.users()


def test_a_written_data_set_reads_back(tiny_dataset: Dataset, tmp_path: Path) -> None:
    copied = write_dataset(tmp_path / "copy", tiny_dataset.config, lambda writer: copy_into(writer, tiny_dataset))
    assert copied.config == tiny_dataset.config
    assert copied.requests(3) == tiny_dataset.requests(3)
    assert copied.engagements(3) == tiny_dataset.engagements(3)
    assert copied.requests_digest(3) == tiny_dataset.requests_digest(3)


def test_extra_tables_are_kept_as_they_are(tiny_dataset: Dataset, tmp_path: Path) -> None:
    coupons = pa.table({"coupon": [1, 2]})

    def fill(writer: DatasetWriter) -> None:
        copy_into(writer, tiny_dataset)
        writer.extra("coupons", coupons)

    dataset = write_dataset(tmp_path / "copy", tiny_dataset.config, fill)
    assert pq.read_table(dataset.path / "extra" / "coupons.parquet") == coupons


def test_a_failed_import_changes_nothing(tiny_dataset: Dataset, tmp_path: Path) -> None:
    def stop(writer: DatasetWriter) -> None:
        writer.items(tiny_dataset.items())
        raise RuntimeError("stopped")

    def without_column(writer: DatasetWriter) -> None:
        writer.engagements(1, tiny_dataset.engagements(1).drop_columns(["action"]))

    def wrong_type(writer: DatasetWriter) -> None:
        table = tiny_dataset.engagements(1)
        writer.engagements(1, table.set_column(4, "action", pa.array(["buy"] * len(table))))

    def invalid(writer: DatasetWriter) -> None:
        copy_into(writer, tiny_dataset)
        writer.requests(2, tiny_dataset.requests(3))

    for fill, message in (
        (stop, "stopped"),
        (without_column, "column 'action' is missing"),
        (wrong_type, "do not fit the schema"),
        (invalid, "lies outside window 2"),
    ):
        with pytest.raises((RuntimeError, DataError), match=message):
            write_dataset(tmp_path / "new", tiny_dataset.config, fill)
        assert not list(tmp_path.iterdir())


def test_an_existing_destination_is_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(DataError, match="never overwrites"):
        write_dataset(tmp_path, tiny_dataset.config, lambda writer: copy_into(writer, tiny_dataset))
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
