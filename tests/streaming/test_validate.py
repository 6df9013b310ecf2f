import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from streaming.catalogue import Catalogue
from streaming.dataset import Dataset, read_parquet
from streaming.engagement_build import part_blocks
from streaming.errors import DataError
from streaming.importers.synthetic import Synthetic
from streaming.validate import validate

Change = Callable[[pa.Table], pa.Table]
WINDOW = 2


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Synthetic.Config(users=6, items=12, windows=3, candidates=4).build(tmp_path_factory.mktemp("data") / "small")


def put(name: str, change: Callable[[list], None]) -> Change:
    """Change a column's (or, as supervision.NAME, a struct field's) values as Python objects."""

    def apply(table: pa.Table) -> pa.Table:
        top, _, child = name.partition(".")
        position = table.schema.names.index(top)
        rows = table[top].to_pylist()
        values = [row[child] for row in rows] if child else rows
        change(values)
        if child:
            rows = [row | {child: value} for row, value in zip(rows, values, strict=True)]
        return table.set_column(position, top, pa.array(rows, table.schema.field(top).type))

    return apply


def cell(row: int, candidate: int, value: object) -> Callable[[list], None]:
    def change(values: list) -> None:
        values[row][candidate] = value

    return change


def item(row: int, value: object) -> Callable[[list], None]:
    def change(values: list) -> None:
        values[row] = value

    return change


def shift(row: int, candidate: int, seconds: int) -> Callable[[list], None]:
    def change(values: list) -> None:
        values[row][candidate] += np.timedelta64(seconds, "s").item()

    return change


def swap(values: list) -> None:
    values[3], values[4] = values[4], values[3]


def drop_last(values: list) -> None:
    values[2] = values[2][:-1]


def second_dense(value: float | None) -> Callable[[list], None]:
    def change(values: list) -> None:
        values[1][2][1] = value

    return change


def retyped(name: str, kind: pa.DataType) -> Change:
    def apply(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.names.index(name), name, table[name].cast(kind))

    return apply


def without_field(name: str) -> Change:
    def apply(table: pa.Table) -> pa.Table:
        struct = table["supervision"].combine_chunks()
        fields = [field for field in struct.type if field.name != name]
        kept = pa.StructArray.from_arrays([struct.field(field.name) for field in fields], fields=fields)
        return table.set_column(table.schema.names.index("supervision"), "supervision", kept)

    return apply


REQUESTS: list[tuple[str, Change, str]] = [
    ("missing column", lambda table: table.drop_columns(["user_id"]), r"column 'user_id': is missing"),
    ("missing tag", lambda table: table.drop_columns(["tag_split_trip"]), r"column 'tag_split_trip': is missing"),
    ("missing label", without_field("label_multiple"), r"column 'supervision\.label_multiple': is missing"),
    ("type", retyped("user_id", pa.int32()), r"column 'user_id': has type int32\. It must be int64"),
    ("type of a list", retyped("surface", pa.list_(pa.int64())), r"column 'surface': has type list.*It must be list"),
    ("type of context", retyped("store", pa.float64()), r"'store': has type double\. It must be int64 or string"),
    ("null", put("user_id", item(3, None)), r"row 3, column 'user_id': null"),
    ("null list", put("item_id", item(3, None)), r"row 3, column 'item_id': null"),
    ("null element", put("item_id", cell(3, 1, None)), r"row 3, candidate 1, column 'item_id': null"),
    ("null weight", put("supervision.weight", cell(3, 1, None)), r"row 3, candidate 1, .*weight': null"),
    ("null supervision", put("supervision", item(3, None)), r"row 3, column 'supervision': null"),
    ("null in dense", put("dense", second_dense(None)), r"row 1, candidate 2, .*dense\[user_recency\]': null"),
    ("unknown item", put("item_id", cell(3, 1, 77)), r"candidate 1, column 'item_id': 77 is not in items\.parquet"),
    ("unknown user", put("user_id", item(3, 77)), r"row 3, column 'user_id': 77 is not in users\.parquet"),
    (
        "unsorted",
        lambda table: table.take([0, 2, 1, *range(3, len(table))]),
        r"row 2, column 'time': 2024.*out of order",
    ),
    (
        "outside",
        put("time", item(0, np.datetime64("2023-01-01", "us").item())),
        r"row 0, column 'time'.*outside window 2",
    ),
    ("unequal lists", put("item_id", drop_last), r"row 2, column 'item_id': 3 values, not as many as"),
    ("unequal labels", put("supervision.label_purchase", drop_last), r"row 2, column 'supervision\.label_purchase': 3"),
    (
        "candidate twice",
        put("candidate_id", cell(2, 3, 0)),
        r"row 2, candidate 3, column 'candidate_id': 0 is repeated",
    ),
    ("request twice", put("request_id", lambda v: item(5, v[4])(v)), r"row 5, column 'request_id': \d+ is repeated"),
    ("request of an earlier window", put("request_id", item(0, 0)), r"row 0, column 'request_id': 0 is in an earlier"),
    ("surface", put("surface", cell(1, 0, 3)), r"row 1, candidate 0, column 'surface': 3 is out of range.*0 surface_0"),
    ("no surface", put("surface", cell(1, 0, -1)), r"column 'surface': -1 is out of range"),
    ("early label", put("supervision.label_time_purchase", shift(1, 2, -1)), r"label_time_purchase'.*is earlier than"),
    ("late label", put("supervision.label_time_purchase", shift(1, 2, 1)), r"later than.*Raise delay_seconds"),
    (
        "untimed label",
        put("supervision.label_time_purchase", cell(1, 2, None)),
        r"is null where label_purchase is known",
    ),
    ("unlabelled time", put("supervision.label_purchase", cell(1, 2, None)), r"is null where label_time_purchase is"),
    ("label", put("supervision.label_purchase", cell(1, 2, 0.5)), r"label_purchase': 0\.5 is not a binary label"),
    (
        "negative weight",
        put("supervision.weight", cell(1, 2, -1.0)),
        r"row 1, candidate 2, .*weight': -1\.0 is not allowed",
    ),
    ("infinite weight", put("supervision.weight", cell(1, 2, float("inf"))), r"weight': inf is not allowed"),
    ("NaN", put("dense", second_dense(float("nan"))), r"row 1, candidate 2, .*dense\[user_recency\]': nan is not"),
    ("infinity", put("dense", second_dense(float("inf"))), r"dense\[user_recency\]': inf is not finite"),
]
ENGAGEMENTS: list[tuple[str, Change, str]] = [
    ("missing column", lambda table: table.drop_columns(["action"]), r"column 'action': is missing"),
    ("null", put("quantity", item(3, None)), r"row 3, column 'quantity': null"),
    ("unknown item", put("item_id", item(3, 77)), r"row 3, column 'item_id': 77 is not in items\.parquet"),
    ("unknown user", put("user_id", item(0, 7)), r"row 0, column 'user_id': 7 is not in users\.parquet"),
    (
        "unsorted",
        lambda table: table.take([*range(len(table))][::-1]),
        r"row \d+, column 'time'.*Sort by \(user_id, time\)",
    ),
    ("outside", put("time", item(0, np.datetime64("2023-01-01", "us").item())), r"row 0.*outside window 2"),
    ("surface", put("surface", item(2, -2)), r"row 2, column 'surface': -2 is out of range.* or -1 for none"),
    ("action", put("action", item(2, 2)), r"row 2, column 'action': 2 is out of range.*1 purchase_multiple"),
    ("quantity", put("quantity", item(2, -1.0)), r"row 2, column 'quantity': -1\.0 is not allowed"),
]
ENTITIES: list[tuple[str, str, Change, str]] = [
    ("items", "missing column", lambda table: table.drop_columns(["brand"]), r"column 'brand': is missing"),
    ("items", "null", put("item_id", item(3, None)), r"row 3, column 'item_id': null"),
    ("items", "twice", put("item_id", lambda v: item(4, v[3])(v)), r"row 4, column 'item_id': 1003 is not larger"),
    ("users", "unsorted", put("user_id", swap), r"row 4, column 'user_id': 103 is not larger"),
    ("users", "type", retyped("user_id", pa.string()), r"column 'user_id': has type string"),
]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def expect_error(dataset: Dataset, copy: Path, relative: Path, change: Change, message: str) -> None:
    shutil.copytree(dataset.path, copy)
    file = copy / relative
    pq.write_table(change(pq.ParquetFile(file).read()), file)
    before = contents(copy)
    with pytest.raises(DataError, match=message) as caught:
        validate(Dataset.open(copy))
    assert str(caught.value).startswith(str(file))
    assert contents(copy) == before


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in REQUESTS], ids=[case[0] for case in REQUESTS])
def test_malformed_requests(small: Dataset, tmp_path: Path, change: Change, message: str) -> None:
    relative = small.request_file(WINDOW).relative_to(small.path)
    expect_error(small, tmp_path / "copy", relative, change, message)


@pytest.mark.parametrize(
    ("change", "message"), [case[1:] for case in ENGAGEMENTS], ids=[case[0] for case in ENGAGEMENTS]
)
def test_malformed_engagements(small: Dataset, tmp_path: Path, change: Change, message: str) -> None:
    relative = small.engagement_file(WINDOW).relative_to(small.path)
    expect_error(small, tmp_path / "copy", relative, change, message)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [(name, change, message) for name, _, change, message in ENTITIES],
    ids=[f"{case[0]} {case[1]}" for case in ENTITIES],
)
def test_malformed_entities(small: Dataset, tmp_path: Path, name: str, change: Change, message: str) -> None:
    expect_error(small, tmp_path / "copy", Path(f"{name}.parquet"), change, message)


def test_a_missing_part(small: Dataset, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small.path, copy)
    (copy / small.request_file(3).relative_to(small.path)).unlink()
    with pytest.raises(DataError, match="the file is missing"):
        validate(Dataset.open(copy))


def test_valid_data_sets_pass_and_stay_as_they_are(small: Dataset, tiny_dataset: Dataset) -> None:
    for dataset in (small, tiny_dataset):
        before = contents(dataset.path)
        validate(dataset)
        assert contents(dataset.path) == before


def test_empty_parts_and_unknown_categories_are_allowed(small: Dataset, tmp_path: Path) -> None:
    copy = Dataset(path=tmp_path / "copy", config=small.config)
    shutil.copytree(small.path, copy.path)
    pq.write_table(small.requests(1).slice(0, 0), copy.request_file(1))
    pq.write_table(small.engagements(1).slice(0, 0), copy.engagement_file(1))
    strings = retyped("store", pa.string())(put("store", item(0, None))(small.requests(2)))
    pq.write_table(strings, copy.request_file(2))
    validate(copy)


def test_ids_from_one_end_of_64_bits_to_the_other(tmp_path: Path, small: Dataset) -> None:
    """Neighbours may lie further apart than a signed number of 64 bits can say."""
    far = Catalogue.read(pa.table({"user_id": [-6 * 10**18, 6 * 10**18]}), id_column="user_id", attributes=[])
    assert far.rows(np.array([6 * 10**18])).tolist() == [1]
    copy = Dataset(path=tmp_path / "copy", config=small.config)
    shutil.copytree(small.path, copy.path)
    ids = {user: 6 * 10**18 if user == 105 else -6 * 10**18 + user for user in range(100, 106)}
    assert set(ids) == set(small.users()["user_id"].to_pylist())

    def spread(values: list) -> None:
        values[:] = [ids[value] for value in values]

    for file in [copy.path / "users.parquet", *sorted(copy.path.glob("*/window=*/*.parquet"))]:
        pq.write_table(put("user_id", spread)(pq.ParquetFile(file).read()), file)
    validate(copy)


def test_a_1_after_the_attribution_window(small: Dataset, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small.path, copy)
    described = yaml.safe_load((copy / "dataset.yaml").read_text(encoding="utf-8"))
    described["tasks"][0] |= {"attribution_seconds": 60.0, "delay_seconds": 120.0}
    (copy / "dataset.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    validate(Dataset.open(copy))
    file = copy / small.request_file(WINDOW).relative_to(small.path)
    rows = pq.ParquetFile(file).read()["supervision"].to_pylist()
    row, candidate = next(
        (r, row["label_purchase"].index(1)) for r, row in enumerate(rows) if 1 in row["label_purchase"]
    )
    late = put("supervision.label_time_purchase", shift(row, candidate, 90))
    pq.write_table(late(pq.ParquetFile(file).read()), file)
    with pytest.raises(DataError, match=r"is of a 1 after the attribution window.*Raise attribution_seconds .*now 60"):
        validate(Dataset.open(copy))


@pytest.mark.parametrize("name", ["requests", "engagements"])
def test_a_damaged_part_is_named(small: Dataset, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small.path, copy)
    (file,) = sorted(copy.glob(f"{name}/window=00002/*.parquet"))
    whole, items = file.read_bytes(), Catalogue.read(small.items(), id_column="item_id", attributes=[])
    readers = [read_parquet, *([partial(part_blocks, items=items)] if name == "engagements" else [])]
    found = []
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        for read in readers:
            try:
                list(read(file))
            except DataError as error:
                found.append(str(error))
    assert found and all(message.startswith(f"{file}: not a readable Parquet file") for message in found)
