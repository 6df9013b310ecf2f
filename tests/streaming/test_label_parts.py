"""Labels that are kept apart from their requests are read in their places."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming import label_parts
from streaming.dataset import Dataset
from streaming.errors import DataError
from streaming.importers.synthetic import Synthetic
from streaming.schema import TIME

DAY = 86_400_000_000


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three windows of a week whose labels may come up to ten days late."""
    config = Synthetic.Config(users=4, items=12, windows=3, candidates=3, label_delay_seconds=864_000)
    return config.build(tmp_path / "data")


def part(rows: list[tuple[int, int, int, int, float, int]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 6
    arrays = [pa.array(column, pa.int64() if field.type == TIME else field.type).cast(field.type)
              for column, field in zip(columns, label_parts.SCHEMA, strict=True)]  # fmt: skip
    return pa.table(arrays, schema=label_parts.SCHEMA)


def unlabelled(table: pa.Table) -> pa.Table:
    """The same requests before anything was known."""
    rows = table.to_pylist()
    for row in rows:
        for name, values in row["supervision"].items():
            if name.startswith("label"):
                row["supervision"][name] = [None] * len(values)
    return pa.Table.from_pylist(rows, schema=table.schema)


def flat(table: pa.Table, name: str) -> list[object]:
    return table["supervision"].combine_chunks().field(name).flatten().to_pylist()


def test_a_join_puts_each_label_into_its_place_and_leaves_the_rest(dataset: Dataset) -> None:
    bare = unlabelled(dataset.requests(1))
    request, time = bare["request_id"][2].as_py(), bare["time"].cast(pa.int64())[2].as_py()
    other = bare["request_id"][0].as_py()
    labels = part(
        [
            (request, time, 1, 0, 1.0, time + DAY),
            (request, time, 1, 0, 0.0, time + 2 * DAY),  # a second label of the same candidate: the first stands
            (request, time, 1, 1, 0.0, time + DAY),
            (request, time, 99, 0, 1.0, time + DAY),  # no such candidate
            (123_456, time, 1, 0, 1.0, time + DAY),  # no such request
            (other, time, 0, 0, 0.0, time + 3 * DAY),
        ]
    )
    assert np.array_equal(label_parts.places(bare, labels) >= 0, [True, True, True, False, False, True])
    joined = label_parts.join(bare, labels, dataset.config)
    purchase, multiple = flat(joined, "label_purchase"), flat(joined, "label_multiple")
    assert (purchase[0], purchase[7], multiple[7]) == (0.0, 1.0, 0.0)
    assert [place for place, value in enumerate(purchase) if value is not None] == [0, 7]
    assert [place for place, value in enumerate(multiple) if value is not None] == [7]
    assert flat(joined, "label_time_purchase")[7] == pa.scalar(time + DAY, pa.int64()).cast(TIME).as_py()
    assert joined.schema == bare.schema
    same = [name for name in bare.column_names if name != "supervision"]
    assert joined.select(same) == bare.select(same)
    assert flat(joined, "weight") == flat(bare, "weight")


def test_the_label_that_became_known_first_stands(dataset: Dataset) -> None:
    table = dataset.requests(1)
    request, time = table["request_id"][0].as_py(), table["time"].cast(pa.int64())[0].as_py()
    closes, label = (flat(table, name)[0] for name in ("label_time_purchase", "label_purchase"))
    closing = pa.scalar(closes, TIME).cast(pa.int64()).as_py()
    assert closing > time + DAY and label in (0.0, 1.0)
    other = 1.0 - float(str(label))
    for later in (closing, closing + DAY):
        joined = label_parts.join(table, part([(request, time, 0, 0, other, later)]), dataset.config)
        assert joined.equals(table)
    # A conversion came before the attribution window closed without one.
    rows = [(request, time, 0, 0, label, closing - 1), (request, time, 0, 0, other, time + DAY)]
    joined = label_parts.join(table, part(rows), dataset.config)
    assert flat(joined, "label_purchase") == [other, *flat(table, "label_purchase")[1:]]
    assert flat(joined, "label_time_purchase")[0] == pa.scalar(time + DAY, pa.int64()).cast(TIME).as_py()


def test_nothing_joins_nothing(dataset: Dataset) -> None:
    table = dataset.requests(1)
    assert label_parts.join(table, part([]), dataset.config).equals(table)
    assert label_parts.join(table.slice(0, 0), part([(1, 0, 0, 0, 1.0, 0)]), dataset.config).num_rows == 0


def test_a_data_set_reads_the_parts_that_its_delays_allow_for(dataset: Dataset) -> None:
    whole = dataset.requests(1)
    pq.write_table(unlabelled(whole), dataset.request_file(1))
    digest = dataset.requests_digest(1)
    request, time = whole["request_id"][0].as_py(), whole["time"].cast(pa.int64())[0].as_py()
    for window, candidate in ((1, 0), (2, 1), (3, 2)):
        path = dataset.label_file(window)
        path.parent.mkdir(parents=True)
        known = dataset.window(window).start + DAY
        pq.write_table(part([(request, time, candidate, 0, 1.0, known)]), path)
    read = dataset.requests(1)
    assert flat(read, "label_purchase")[:4] == [1.0, 1.0, 1.0, None]  # ten days after week 1 is in week 3
    assert None not in flat(dataset.requests(2), "label_purchase")  # its own, of which no part says anything
    assert dataset.requests_digest(1) == digest
    some = dataset.requests(1, columns=["time", "supervision.label_purchase"])
    assert some.column_names == ["time", "supervision"]
    assert flat(some, "label_purchase") == flat(read, "label_purchase")
    assert [field.name for field in some.schema.field("supervision").type] == ["label_purchase"]
    assert dataset.requests(1, columns=["request_id"]).column_names == ["request_id"]
    with pytest.raises(DataError, match="label_click"):
        dataset.requests(1, columns=["supervision.label_click"])
