"""Whole imports: every row arrives, in every format alike; nothing that comes later changes what came before."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.errors import ConfigError, DataError
from streaming.importers.mapping.columns import ids
from streaming.importers.mapping.config import MappingConfig
from streaming.importers.mapping.importer import COUNTS, Mapping, quarantine_file
from streaming.importers.mapping.source import read_blocks
from streaming.validate import validate
from tests.streaming.importers.mapping.conftest import Import
from tests.streaming.importers.mapping.shop import (
    DAY,
    SHOP,
    START,
    candidates_of,
    everything,
    mapping,
    shop_log,
    write_csv,
    write_jsonl,
)


def code(value: object) -> int:
    return int(ids(pa.array([str(value)]), column="id").code[0])


def test_every_row_becomes_a_candidate_of_its_users_request(imported: Import) -> None:
    log = shop_log()
    dataset = imported(log)
    validate(dataset)
    assert dataset.config.surfaces == ["home", "search"] and dataset.config.actions == ["click"]
    expected = [
        (
            code(row["user"]),
            datetime.fromtimestamp(row["ts"], UTC),
            row["item"],
            ["home", "search"].index(row["page"]),
            row["clicked"],
            row["bought"] if row["clicked"] else None,
        )
        for row in log.to_pylist()
    ]
    found = [
        (each["user"], each["time"], each["item"], each["surface"], each["label_click"], each["label_buy"])
        for each in candidates_of(dataset)
    ]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    for each in candidates_of(dataset):
        assert each["label_time_click"] == each["time"] and each["weight"] == 1
        known = each["label_time_buy"]
        assert (known is None) if each["label_buy"] is None else (known - each["time"]).total_seconds() == 3600
    requests = everything(dataset)["requests"]
    assert len(requests) == len({(row["user"], row["ts"]) for row in log.to_pylist()})
    assert any(len(request["item_id"]) > 1 for request in requests)
    clicks = [row for row in log.to_pylist() if row["clicked"]]
    engagements = everything(dataset)["engagements"]
    assert sorted((row["user_id"], row["time"], row["item_id"], row["surface"]) for row in engagements) == sorted(
        (code(row["user"]), datetime.fromtimestamp(row["ts"], UTC), row["item"], ["home", "search"].index(row["page"]))
        for row in clicks
    )


def test_ids_can_be_translated_back(imported: Import) -> None:
    log = shop_log()
    dataset = imported(log)
    for kind, column in (("user", log["user"]), ("item", log["item"])):
        table = pq.read_table(dataset.path / "extra" / f"ids_{kind}.parquet")
        assert sorted(table["id"].to_pylist()) == sorted({str(value) for value in column.to_pylist()})
        assert table["code"].to_pylist() == [code(value) for value in table["id"].to_pylist()]
    assert dataset.items()["genre"].to_pylist() == [
        f"genre {item % 5}" for item in dataset.items()["item_id"].to_pylist()
    ]


def test_what_was_imported_is_written_down(imported: Import) -> None:
    dataset = imported(shop_log())
    counts = json.loads((dataset.path / "extra" / COUNTS).read_text())
    assert counts["rows"] == 400 and counts["bad_rows"] == 0
    again = configuration.load(dataset.path / "extra" / "mapping.yaml", MappingConfig)
    assert again == mapping(dataset.path.parent).config
    assert not quarantine_file(dataset.path).exists()
    assert sorted(path.name for path in dataset.path.parent.iterdir()) == ["log.csv", "shop"]


def test_formats_and_order_of_rows_make_no_difference(imported: Import, tmp_path: Path) -> None:
    log = shop_log()
    # Rows of one user at one time keep the order of the file: it is shuffled, but not among those.
    random = np.random.default_rng(1)
    keys = {key: random.random() for key in {(row["user"], row["ts"]) for row in log.to_pylist()}}
    rank = np.array([keys[row["user"], row["ts"]] for row in log.to_pylist()])
    other = log.take(pa.array(np.argsort(rank, kind="stable")))
    expected = everything(imported(log))
    assert everything(imported(other, "shuffled")) == expected
    pq.write_table(log, tmp_path / "log.parquet", row_group_size=33)
    write_jsonl(log, tmp_path / "log.jsonl")
    for part, rows in enumerate((log.slice(0, 150), log.slice(150))):
        write_csv(rows, tmp_path / f"part-{part}.tsv")
    for number, rows in enumerate(({"files": "log.parquet"}, {"files": "log.jsonl"})):
        assert everything(mapping(tmp_path, rows=rows).build(tmp_path / f"other {number}")) == expected
    for part in range(2):
        path = tmp_path / f"part-{part}.tsv"
        path.write_text(path.read_text().replace(",", "\t"))
    assert everything(mapping(tmp_path, rows={"files": "part-*.tsv"}).build(tmp_path / "parts")) == expected


NEGATIVES = {"negatives": {"per_positive": 2, "from": "popularity"}, "tasks": [{"name": "play"}], "requests": {}}


@pytest.mark.parametrize(
    "changes", [{}, {"requests": {"within_seconds": 7200}}, NEGATIVES], ids=["rows", "groups", "drawn"]
)
def test_what_comes_later_changes_nothing_before(imported: Import, changes: dict) -> None:
    log = shop_log()
    cut = START + 5 * DAY
    past = log.filter(pa.compute.less(log["ts"], cut))
    future = shop_log(300, seed=9).filter(pa.compute.greater_equal(shop_log(300, seed=9)["ts"], cut))
    start = {"windows": {"length": "2d", "start": datetime.fromtimestamp(START // DAY * DAY, UTC)}}
    one = imported(log, "one", **start, **changes)
    other = imported(pa.concat_tables([past, future]), "other", **start, **changes)
    at = datetime.fromtimestamp(cut, UTC)

    def before(dataset: Dataset, log_: str) -> list[dict]:
        return [row for row in everything(dataset)[log_] if row["time"] < at]

    assert len(before(one, "requests")) > 50
    if changes.get("requests"):
        # A group that began before the cut may hold rows after it; its inputs may not.
        assert _inputs(before(one, "requests"), cut) == _inputs(before(other, "requests"), cut)
    else:
        assert before(one, "requests") == before(other, "requests")
    assert before(one, "engagements") == before(other, "engagements")


def _inputs(requests: list[dict], cut: int) -> list[dict]:
    last = datetime.fromtimestamp(cut - 7200, UTC)
    return [request for request in requests if request["time"] < last]


def test_an_engagement_is_history_once_its_label_is_known(imported: Import) -> None:
    dataset = imported(
        shop_log(),
        engagements=[
            {"action": "buy", "task": "buy"},
            {"action": "skip", "task": "click", "label": 0},
            {"action": "see"},
        ],
    )
    found = everything(dataset)
    times = {name: [] for name in dataset.config.actions}
    for row in found["engagements"]:
        times[dataset.config.actions[row["action"]]].append(row["time"])
    labelled = candidates_of(dataset)
    assert sorted(times["buy"]) == sorted(each["label_time_buy"] for each in labelled if each["label_buy"] == 1)
    assert sorted(times["skip"]) == sorted(each["time"] for each in labelled if each["label_click"] == 0)
    assert sorted(times["see"]) == sorted(each["time"] for each in labelled)


def test_engagements_attributes_and_surfaces_from_files_of_their_own(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "orders.jsonl").write_text(
        "".join(
            json.dumps({"who": "user 1", "sku": 5, "at": f"2023-11-1{day}T12:00:00Z", "n": day}) + "\n"
            for day in (5, 6)
        )
    )
    (tmp_path / "films.dat").write_text("".join(f"{n}::Comedy|x\n" for n in range(20)) + "20::Drama\n99::Drama\n")
    films = {"files": "films.dat", "format": "csv", "csv": {"delimiter": "::", "columns": ["id", "genres"]}}
    films_items = {"files": films, "id": "id", "attributes": {"genre": {"column": "genres", "first_of": "|"}}}
    orders = {"files": {"files": "orders.jsonl"}, "user": "who", "item": "sku", "quantity": "n"}
    dataset = imported(
        shop_log(),
        items=films_items,
        surface={"item_attribute": "genre", "otherwise": "elsewhere"},
        engagements=[{"action": "order", **orders, "time": {"column": "at", "unit": "iso"}}],
    )
    assert dataset.config.surfaces == ["Comedy", "Drama", "elsewhere"]
    assert 99 in dataset.items()["item_id"].to_pylist()
    found = everything(dataset)
    assert [(row["item_id"], row["surface"], row["quantity"]) for row in found["engagements"]] == [
        (5, -1, 5),
        (5, -1, 6),
    ]
    for each in candidates_of(dataset):
        assert each["surface"] == (0 if each["item"] < 20 else 1 if each["item"] == 20 else 2)


def test_request_ids_weights_and_dense_columns(imported: Import) -> None:
    log = shop_log(399)
    page = np.arange(len(log)) // 3
    user = [f"user {each}" for each in page % 5]
    time = START + page * 1800 + np.arange(len(log)) % 3
    log = log.set_column(0, "user", [user]).set_column(2, "ts", [time])
    log = log.append_column("request", [[f"page {each}" for each in page]])
    log = log.append_column("price", [[-float(np.e) + 1 if n % 2 else None for n in range(len(log))]])
    log = log.append_column("stands for", [[0.5 + n % 2 for n in range(len(log))]])
    dataset = imported(
        log,
        requests={"id": "request"},
        weight="stands for",
        dense={"price": {"column": "price", "transform": "log1p"}},
        clock=["hour"],
    )
    requests = everything(dataset)["requests"]
    assert [len(request["item_id"]) for request in requests] == [3] * 133
    assert dataset.config.dense == ["price"] and dataset.config.context == ["store", "hour"]
    pairs = [
        (round(dense[0], 5), weight)
        for request in requests
        for dense, weight in zip(request["dense"], request["supervision"]["weight"], strict=True)
    ]
    assert set(pairs) == {(-1.0, 1.5), (0.0, 0.5)}
    assert all(request["hour"] == request["time"].hour for request in requests)


def test_known_at_says_when_a_label_came(imported: Import) -> None:
    log = shop_log()
    late = [None if n % 3 else (ts + 90_000) * 1000 for n, ts in enumerate(log["ts"].to_pylist())]
    log = log.append_column("seen_ms", [late])
    tasks = [
        {"name": "click", "column": "clicked", "known_at": {"column": "seen_ms", "unit": "ms"}, "delay_seconds": 60}
    ]
    dataset = imported(log, tasks=tasks)
    assert dataset.config.tasks[0].delay_seconds == 90_000
    delays = [(each["label_time_click"] - each["time"]).total_seconds() for each in candidates_of(dataset)]
    assert sorted(set(delays)) == [60, 90_000]
    assert sum(delay == 60 for delay in delays) == sum(each is None for each in late)


def test_a_context_that_names_the_item_is_refused_beside_drawn_negatives(imported: Import) -> None:
    """It would be that of the row, which is the positive."""
    column = next(iter(shop_log().column_names))
    telling = {"items": {"attributes": {"kind": column}}, "context": {"aisle": column}}
    with pytest.raises(ConfigError, match=r"context \['aisle'\] reads a column of the item"):
        imported(shop_log(), **NEGATIVES, **telling)


def test_negatives_are_drawn_beside_what_was_taken(imported: Import) -> None:
    log = shop_log()
    dataset = imported(log, **NEGATIVES)
    requests = everything(dataset)["requests"]
    assert len(requests) > 100
    for request in requests:
        label, stratum = request["supervision"]["label_play"], request["supervision"]["stratum"]
        assert [1 - each for each in stratum] == label
        assert 0 < sum(label) < len(label) <= 3 * sum(label)
    counts = json.loads((dataset.path / "extra" / COUNTS).read_text())
    taken = sum(sum(request["supervision"]["label_play"]) for request in requests)
    assert counts["positives_outside_pools"] + taken == counts["rows"] == len(log)


def test_order_in_a_request_says_nothing_and_is_the_same_again(imported: Import) -> None:
    log = shop_log()
    one = everything(imported(log, "one"))["requests"]
    assert everything(imported(log, "again"))["requests"] == one
    other = everything(imported(log, "other", seed=1))["requests"]
    assert one != other
    assert [sorted(request["item_id"]) for request in one] == [sorted(request["item_id"]) for request in other]


def test_a_killed_imports_scratch_is_no_hindrance_and_an_existing_data_set_is(imported: Import, tmp_path: Path) -> None:
    (tmp_path / ".shop.import").mkdir()
    (tmp_path / ".shop.import" / "rows.arrows").write_text("half")
    imported(shop_log())
    assert not (tmp_path / ".shop.import").exists()
    with pytest.raises(DataError, match="exists already"):
        imported(shop_log())


def test_an_iterable_reader_may_stand_in_for_files(tmp_path: Path) -> None:
    write_csv(shop_log(), tmp_path / "log.csv")
    seen = []

    def read(config, folder, columns):  # type: ignore[no-untyped-def]
        seen.append(list(columns))
        yield from read_blocks(config, folder, columns)

    config = mapping(tmp_path).config
    found = everything(Mapping(config=config, folder=tmp_path, read=read).build(tmp_path / "one"))
    assert found == everything(mapping(tmp_path).build(tmp_path / "other"))
    assert seen == [["user", "item", "ts", "page", "clicked", "bought", "store", "genre"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": {"attributes": {"item": "genre"}}}, "item is a name of the format"),
        ({"context": {"history_check": "store"}}, "history_check is a name of the format"),
        ({"dense": {"user_count": {"column": "item"}}, "as_of_features": True}, "user_count is the name of an as-of"),
        ({"surface": {"constant": "feed", "prefix": "x"}}, "constant is the one surface"),
        ({"engagements": [{"action": "view", "label": 0}]}, "'label' is that of a task"),
        ({"rows": {"files": "log.csv", "csv": {"encoding": "ansy"}}}, "there is no encoding 'ansy'"),
        ({"weight": "item", "negatives": {"per_positive": 2}}, "leave out 'weight'"),
    ],
)
def test_what_would_be_ignored_or_taken_for_something_else_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configuration.parse({**SHOP, **changes}, MappingConfig, source="here")
