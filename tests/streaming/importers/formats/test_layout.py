from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from streaming.errors import DataError
from streaming.importers.formats.choice import FORMATS
from streaming.importers.formats.layout import Derived, Layout, header, require_columns
from streaming.importers.formats.movielens import movielens
from streaming.importers.mapping.config import FilesConfig
from tests.streaming.importers.formats import official

DOUBLE = Derived(needs=("a",), compute=lambda block: pc.multiply(block.columns["a"].cast(pa.int64()), 2))


def test_derived_columns_stand_beside_those_of_the_files_and_need_not_be_asked_for(tmp_path: Path) -> None:
    official.write(tmp_path / "x.csv", [["a", "b"], [1, "p"], [2, "q"]])
    mapping = movielens(official.movielens_1m(tmp_path)).mapping
    read = Layout(mapping=mapping, derived={"double": DOUBLE}).reader
    files = FilesConfig(files=["x.csv"])
    for columns in (["b", "double"], ["double", "a"], ["double"], ["b"]):
        (block,) = read(files, tmp_path, columns)
        assert list(block.columns) == columns
        expected = {"a": ["1", "2"], "b": ["p", "q"], "double": [2, 4]}
        assert {name: column.to_pylist() for name, column in block.columns.items()} == {
            name: expected[name] for name in columns
        }
        assert np.array_equal(block.row, [0, 1])


def test_a_column_that_a_derived_one_needs_must_be_there(tmp_path: Path) -> None:
    official.write(tmp_path / "x.csv", [["b"], [1]])
    mapping = movielens(official.movielens_1m(tmp_path)).mapping
    with pytest.raises(DataError, match="column 'a' is missing"):
        list(
            Layout(mapping=mapping, derived={"double": DOUBLE}).reader(
                FilesConfig(files=["x.csv"]), tmp_path, ["double"]
            )
        )


def test_headers_keep_spaces_and_lose_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfa,b \r\n1,2\r\n")
    assert header(tmp_path / "x.csv") == ["a", "b "]


def test_a_header_that_is_no_text_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DataError, match="not UTF-8 text"):
        require_columns(tmp_path / "x.csv", ("a",))
    with pytest.raises(DataError, match="cannot be read"):
        header(tmp_path / "none.csv")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_folder_without_the_official_files_is_one_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds none of them"):
        FORMATS[name].layout(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        FORMATS[name].layout(tmp_path / "absent")
