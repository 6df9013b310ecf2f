"""Hostile rows: set aside with their reasons, or one clear error; never half a data set, never a path."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.errors import UserError
from streaming.importers.mapping import quarantine
from streaming.importers.mapping.importer import quarantine_file
from streaming.importers.mapping.quarantine import TooManyBadRowsError
from streaming.validate import validate
from tests.streaming.importers.mapping.shop import START, candidates_of, mapping, shop_log, write_csv

GOOD = {
    "user": "u",
    "item": "1",
    "ts": str(START),
    "page": "home",
    "clicked": "1",
    "bought": "0",
    "store": "s",
    "genre": "g",
}

BAD = {
    "no user": ({"user": ""}, "user: no id"),
    "NaN user": ({"user": "NaN"}, "user: no id"),
    "a user of half a megabyte": ({"user": "u" * (1 << 19)}, "user: an id that is too long"),
    "no item": ({"item": "  "}, "item: no id"),
    "no time": ({"ts": ""}, "ts: no time"),
    "a negative time": ({"ts": "-1"}, "ts: before 1990-01-01, read as s"),
    "a time in ms": ({"ts": f"{START}000"}, "ts: after 2100-01-01, read as s"),
    "an absurd time": ({"ts": "9" * 300}, "ts: not a time (s)"),
    "a word for a time": ({"ts": "yesterday"}, "ts: not a time (s)"),
    "no surface": ({"page": ""}, "page: no surface"),
    "a label that is none": ({"clicked": "maybe"}, "clicked: no label of task click"),
    "a label of two": ({"bought": "2"}, "bought: no label of task buy"),
    "an infinite weight": ({"weight": "inf"}, "weight: not a number from 0 on"),
    "a negative weight": ({"weight": "-1"}, "weight: not a number from 0 on"),
    "a price that is none": ({"price": "1e999"}, "price: not a finite number"),
    "a price that is a formula": ({"price": "=1+1"}, "price: not a finite number"),
    "a price too large to store": ({"price": "1e39"}, "price: not a finite number"),
}
CHANGES = {"weight": "weight", "dense": {"price": "price"}, "max_bad_share": 0.5}


def write(folder: Path, rows: list[dict[str, str]]) -> None:
    header = [*GOOD, "weight", "price"]
    cells = [[{**GOOD, "weight": "1", "price": "2", **row}[name] for name in header] for row in rows]
    text = "\n".join(",".join(f'"{cell}"' for cell in line) for line in [header, *cells])
    (folder / "log.csv").write_text(text + "\n", encoding="utf-8")


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_set_aside_with_its_reason(tmp_path: Path, case: str) -> None:
    change, reason = BAD[case]
    write(tmp_path, [{}, change, {"item": "2"}])
    out = tmp_path / "shop"
    dataset = mapping(tmp_path, **CHANGES).build(out)
    validate(dataset)
    assert sorted(each["item"] for each in candidates_of(dataset)) == [1, 2]
    (row,) = pq.read_table(quarantine_file(out)).to_pylist()
    assert (row["file"], row["row"], row["reason"]) == (str(tmp_path / "log.csv"), 1, reason)
    (name, value), *_ = change.items()
    shown = "null" if value in ("", "NaN") else value[:50]
    assert f"{name}={shown}" in row["content"] and len(row["content"]) <= 1000


def test_too_many_bad_rows_end_the_import_and_leave_their_reasons(tmp_path: Path) -> None:
    write(tmp_path, [{}, {}, {"user": ""}, {"ts": "-1"}, {"ts": "-2"}])
    out = tmp_path / "shop"
    with pytest.raises(TooManyBadRowsError, match=r"3 of 5 rows are bad.*\(2\): ts: before 1990.*row 3"):
        mapping(tmp_path, **CHANGES).build(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "shop.quarantine.parquet"]
    assert pq.read_table(quarantine_file(out))["row"].to_pylist() == [2, 3, 4]
    write(tmp_path, [{}, {}])
    mapping(tmp_path, **CHANGES).build(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "shop"]


def test_a_wrong_unit_stops_early_and_not_after_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "EARLY", 100)
    for part in range(3):
        write_csv(shop_log(200), tmp_path / f"{part}.csv")
    with pytest.raises(TooManyBadRowsError, match=r"200 of 200 rows are bad.*ts: before 1990-01-01, read as us"):
        mapping(tmp_path, rows={"files": "*.csv"}, time={"column": "ts", "unit": "us"}).build(tmp_path / "shop")


@pytest.mark.parametrize("page", ["../../x", "/etc/passwd", "..", "~root", "a\\b", "=HYPERLINK(1)", "\u202e"])
def test_no_value_becomes_a_path(tmp_path: Path, page: str) -> None:
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)
    write(folder, [{}, {"page": page, "user": page, "item": page, "store": page, "genre": page}])
    dataset = mapping(folder, **CHANGES).build(folder / "shop")
    assert page in dataset.items()["genre"].to_pylist()
    for name in dataset.config.surfaces:
        assert (folder / name).resolve().parent == folder.resolve()
    written = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*")}
    assert written == {("inner",), ("inner", "folder")}


NOTHING = {
    "no rows": ([], {}, "there is not one good row"),
    "only bad rows": ([{"user": ""}], {"max_bad_share": 1.0}, r"there is not one good row\. 1 times: .*user"),
    "a column that is not there": ([{}], {"item": "sku"}, "column 'sku' is missing"),
    "events before the first window": (
        [{}],
        {"windows": {"count": 2, "start": "2024-01-01T00:00:00Z"}},
        "Start earlier",
    ),
    "far too many windows": ([{}, {"ts": "700000000"}], {"windows": "1h"}, "Give longer ones"),
    "a surface of every user": ([{"page": f"p{n}"} for n in range(200)], {}, "at most 127 surfaces"),
}


@pytest.mark.parametrize("case", NOTHING)
def test_one_clear_error_and_nothing_on_disk(tmp_path: Path, case: str) -> None:
    rows, changes, message = NOTHING[case]
    write(tmp_path, rows)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message) as raised:
        mapping(tmp_path, **changes).build(tmp_path / "shop")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000
    assert {path.name for path in tmp_path.iterdir()} <= {"log.csv", "shop.quarantine.parquet"}


def test_a_column_of_mixed_types_over_files_is_read_alike(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [1, 2], "item": ["a", "7"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"user": [2.0, 3.0], "item": [7, 8]}), tmp_path / "2.parquet")
    for number, flag in ((1, [True, False]), (2, ["1", "false"])):
        table = pq.read_table(tmp_path / f"{number}.parquet")
        table = table.append_column("clicked", [flag]).append_column("ts", [[START, START + 1]])
        pq.write_table(table, tmp_path / f"{number}.parquet")
    task = {"name": "click", "column": "clicked"}
    plain: dict[str, Any] = {"context": {}, "items": {}, "tasks": [task], "surface": {"constant": "feed"}}
    dataset = mapping(tmp_path, rows={"files": "*.parquet"}, **plain).build(tmp_path / "shop")
    assert dataset.users()["user_id"].to_pylist() == [1, 2, 3]
    assert len(dataset.items()) == 3 and 7 in dataset.items()["item_id"].to_pylist()
    assert sum(label for each in candidates_of(dataset) if (label := each["label_click"])) == 2


EDIT = st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(max_size=6))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EDIT, min_size=1, max_size=6), st.sampled_from([0.0, 0.2, 1.0]))
def test_a_damaged_file_is_imported_without_its_bad_rows_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[float, int, bytes]], share: float
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    write_csv(shop_log(30), folder / "log.csv")
    text = (folder / "log.csv").read_bytes()
    for place, cut, insert in edits:
        at = int(place * len(text))
        text = text[:at] + insert + text[at + cut :]
    (folder / "log.csv").write_bytes(text)
    try:
        dataset = mapping(folder, max_bad_share=share, windows={"count": 2}).build(folder / "shop")
    except UserError:
        assert {path.name for path in folder.iterdir()} <= {"log.csv", "shop.quarantine.parquet"}
    else:
        validate(dataset)
        bad = quarantine_file(folder / "shop")
        assert not bad.exists() or share > 0
        assert {path.name for path in folder.iterdir()} == {"log.csv", "shop"} | ({bad.name} if bad.exists() else set())
