"""Files become blocks: every good row with its number, every bad one with its reason, in every format alike."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.errors import DataError
from streaming.importers.mapping.config import FilesConfig
from streaming.importers.mapping.source import read_blocks

CELL = st.text(
    st.characters(codec="utf-8", exclude_characters='\r\n\x00"\ufffd', exclude_categories=["Cs"]), max_size=8
)


def read(folder: Path, columns: list[str], **config: Any) -> tuple[list[tuple[int, ...]], list[tuple[int, str]]]:
    """Rows (number, cells…) and refused rows (number, reason)."""
    rows: list[tuple[int, ...]] = []
    refused: list[tuple[int, str]] = []
    for block in read_blocks(FilesConfig.model_validate(config), folder, columns):
        cells = [block.columns[name].to_pylist() for name in columns]
        rows += zip(block.row.tolist(), *cells, strict=True)
        refused += [(each.row, each.reason) for each in block.refused]
    return rows, refused


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELL, CELL), max_size=20))
def test_cells_come_back_as_they_were_written(tmp_path: Path, cells: list[tuple[str, str]]) -> None:
    (tmp_path / "a.csv").write_bytes("".join(f'"{a}","{b}"\n' for a, b in [("x", "y"), *cells]).encode())
    (tmp_path / "a.jsonl").write_bytes("".join(json.dumps({"x": a, "y": b}) + "\n" for a, b in cells).encode())
    for file in ("a.csv", "a.jsonl"):
        with gzip.open(tmp_path / f"{file}.gz", "wb") as packed:
            packed.write((tmp_path / file).read_bytes())
    for file in ("a.csv", "a.csv.gz"):
        rows, refused = read(tmp_path, ["y", "x"], files=file, csv={"null_values": []})
        assert rows == [(number, b, a) for number, (a, b) in enumerate(cells)] and not refused
    for file in ("a.jsonl", "a.jsonl.gz"):
        rows, refused = read(tmp_path, ["y", "x"], files=file)
        assert rows == [(number, b, a) for number, (a, b) in enumerate(cells)] and not refused


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["1,2", "3", "4,5,6", "7,\xff", "8,9"]), min_size=1, max_size=30))
def test_every_row_of_a_csv_file_has_its_number(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\n" + "".join(f"{line}\n" for line in lines).encode("latin-1"))
    rows, refused = read(tmp_path, ["a"], files="a.csv")
    assert [(number, f"{a},") for number, a in rows] == [
        (number, f"{line[0]},") for number, line in enumerate(lines) if line in ("1,2", "8,9", "7,\xff")
    ]
    assert [number for number, _ in refused] == [n for n, line in enumerate(lines) if line in ("3", "4,5,6")]
    rows, refused = read(tmp_path, ["a", "b"], files="a.csv")
    assert [number for number, *_ in rows] == [n for n, line in enumerate(lines) if line in ("1,2", "8,9")]
    assert sorted(number for number, _ in refused) == [n for n, line in enumerate(lines) if line not in ("1,2", "8,9")]


def test_many_bad_rows_over_many_blocks_keep_their_numbers(tmp_path: Path) -> None:
    lines = [f"{number},{'x' * 200}" if number % 7 else "bad" for number in range(60_000)]  # 12 MB: several blocks
    (tmp_path / "a.csv").write_text("n,text\n" + "\n".join(lines) + "\n")
    rows, refused = read(tmp_path, ["n"], files="a.csv")
    assert all(number == int(n) for number, n in rows)  # type: ignore[call-overload]
    assert [number for number, _ in refused] == list(range(0, 60_000, 7))


def test_a_row_may_be_longer_than_a_piece(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,text\n" + "".join(f"{n},{'x' * 3_000_000}\n" for n in range(3)))
    rows, _ = read(tmp_path, ["n"], files="a.csv", max_row_bytes=4_000_000)
    assert rows == [(n, str(n)) for n in range(3)]  # type: ignore[comparison-overlap]


def test_json_values_keep_their_text(tmp_path: Path) -> None:
    lines = ['{"a": 12345678901234567890, "b": 1.50}', '{"b": true}', "", '{"a": null, "b": {}}', "[1]", "{", "NaN"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows, refused = read(tmp_path, ["a", "b"], files="a.jsonl")
    assert rows == [(0, "12345678901234567890", "1.50"), (1, None, "true")]
    assert [number for number, _ in refused] == [3, 4, 5, 6]
    assert refused[1][1] == "not a JSON object"


def test_a_file_without_a_header_has_the_names_of_the_mapping(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("1\t2\n3\t4\n")
    options = {"delimiter": "\t", "columns": ["user", "item"]}
    assert read(tmp_path, ["item"], files="u.data", format="csv", csv=options)[0] == [(0, "2"), (1, "4")]


def test_delimiters_of_several_characters(tmp_path: Path) -> None:
    (tmp_path / "movies.dat").write_bytes("1::Amélie: the film::Comedy|Romance\n".encode("latin-1"))
    options = {"delimiter": "::", "columns": ["id", "title", "genres"], "encoding": "latin-1", "quote": None}
    rows, _ = read(tmp_path, ["title", "genres"], files="movies.dat", format="csv", csv=options)
    assert rows == [(0, "Amélie: the film", "Comedy|Romance")]  # type: ignore[comparison-overlap]


def test_parquet_gives_what_it_holds(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array(["x", "y", None]).dictionary_encode(), "b": [1.5, None, 3.0], "c": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    rows, _ = read(tmp_path, ["b", "a"], files="*.parquet")
    assert rows == [(0, 1.5, "x"), (1, None, "y"), (2, 3.0, None)]  # type: ignore[comparison-overlap]


def test_globs_go_in_the_order_of_names_and_take_a_file_once(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.csv").write_text(f"x\n{name}\n")
    (tmp_path / "folder.csv").mkdir()
    assert [cell for _, cell in read(tmp_path, ["x"], files=["*.csv", "a.csv"])[0]] == ["a", "b", "c"]


def test_globs_of_a_folder_that_is_named_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop" / "logs").mkdir(parents=True)
    (tmp_path / "shop" / "logs" / "a.csv").write_text("x\n1\n")
    monkeypatch.chdir(tmp_path)
    assert [cell for _, cell in read(Path("shop"), ["x"], files=["logs/*.csv"])[0]] == ["1"]


HOSTILE = {
    "no such file": ({"files": "none.csv"}, "there is no such file"),
    "no match": ({"files": "none-*.csv"}, "there is no such file"),
    "unknown format": ({"files": "a.bin"}, "of which format is it"),
    "missing column": ({"files": "other.csv"}, "column 'x' is missing; there are 'y', 'z'"),
    "duplicated column": ({"files": "twice.csv"}, "column 'x' is there 2 times"),
    "duplicated parquet column": ({"files": "twice.parquet"}, "column 'x' is there 2 times"),
    "empty": ({"files": "empty.csv"}, "there is no header line"),
    "utf-16 header": ({"files": "wide.csv"}, r"the header line is not UTF-8|column 'x' is missing"),
    "not parquet": ({"files": "text.parquet"}, "not a readable Parquet file"),
    "truncated parquet": ({"files": "cut.parquet"}, "not a readable Parquet file"),
    "nested": ({"files": "nested.parquet"}, "holds list<"),
    "open quotation": ({"files": "open.csv", "csv": {"newlines_in_values": True}}, "Is every quotation closed"),
    "a line of 10 MB": ({"files": "long.csv"}, "a row is longer than"),
    "a JSON line of 10 MB": ({"files": "long.jsonl"}, "a row is longer than"),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "a.bin").write_text("x\n1\n")
    (folder / "other.csv").write_text("y,z\n1,2\n")
    (folder / "twice.csv").write_text("x,x\n1,2\n")
    pq.write_table(pa.table([[1], [2]], names=["x", "x"]), folder / "twice.parquet")
    (folder / "empty.csv").write_text("")
    (folder / "wide.csv").write_bytes("x\n1\n".encode("utf-16"))
    (folder / "text.parquet").write_text("x\n1\n")
    pq.write_table(pa.table({"x": list(range(1000))}), folder / "whole.parquet")
    (folder / "cut.parquet").write_bytes((folder / "whole.parquet").read_bytes()[:-100])
    pq.write_table(pa.table({"x": [[1], [2]]}), folder / "nested.parquet")
    (folder / "open.csv").write_text('x\n"1\n' + "2\n" * 700_000)
    (folder / "long.csv").write_text("x\n" + "1" * 10_000_000 + "\n")
    (folder / "long.jsonl").write_text('{"x": "' + "1" * 10_000_000 + '"}\n')
    return folder


@pytest.mark.parametrize("case", HOSTILE)
def test_one_clear_error_about_a_hostile_file(hostile: Path, case: str) -> None:
    config, message = HOSTILE[case]
    with pytest.raises(DataError, match=message) as raised:
        read(hostile, ["x"], **config)
    assert str(hostile) in str(raised.value)
    assert len(str(raised.value)) < 1_000
