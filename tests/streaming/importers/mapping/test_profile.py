"""The dry run: what there is, counted right, and what would go wrong, with nothing left on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streaming.errors import DataError
from streaming.importers.mapping.profile import Profile
from tests.streaming.importers.mapping.shop import DAY, START, mapping, shop_log, write_csv


def profiled(folder: Path, log: pa.Table, **changes: Any) -> Profile:
    write_csv(log, folder / "log.csv")
    before = sorted(folder.iterdir())
    found = mapping(folder, **changes).profile(beside=folder)
    assert sorted(folder.iterdir()) == before
    return found


def test_everything_is_counted(tmp_path: Path) -> None:
    log = shop_log()
    store = [None if n % 4 == 0 else "s" for n in range(len(log))]
    log = log.set_column(log.column_names.index("store"), "store", [store])
    found = profiled(tmp_path, log)
    rows = log.to_pylist()
    assert (found.rows, found.users, found.items) == (400, len(set(log["user"].to_pylist())), 30)
    assert found.engagements == sum(log["clicked"].to_pylist())
    assert [surface.name for surface in found.surfaces] == ["home", "search"]
    for surface in found.surfaces:
        shown = [row for row in rows if row["page"] == surface.name]
        clicked = [row for row in shown if row["clicked"]]
        assert surface.rows == len(shown)
        assert surface.rates["click"] == pytest.approx(len(clicked) / len(shown), abs=1e-6)
        assert surface.rates["buy"] == pytest.approx(sum(row["bought"] for row in clicked) / len(clicked), abs=1e-6)
    moments = [(row["user"], row["ts"]) for row in rows]
    assert found.ties == sum(moments.count(moment) > 1 for moment in moments)
    assert found.requests == len(set(moments))
    sizes = np.unique(np.array([f"{user}/{ts}" for user, ts in moments]), return_counts=True)[1]
    assert found.candidates_per_request == {
        "smallest": sizes.min(),
        "median": np.median(sizes),
        "mean": round(sizes.mean(), 2),
        "largest": sizes.max(),
    }
    assert found.nulls["store"] == 100 and found.nulls["user"] == 0
    assert found.first == str(np.datetime64(min(log["ts"].to_pylist()), "s").astype("datetime64[us]")) + "+00:00"
    # The last purchase becomes known an hour after its row, but a purchase is no engagement here.
    assert found.last == str(np.datetime64(max(log["ts"].to_pylist()), "s").astype("datetime64[us]")) + "+00:00"
    assert found.windows == 6 and found.empty_windows == 0
    assert not found.bad and not [each for each in found.findings if each.severity == "error"]
    assert json.loads(json.dumps(found.to_dict()))["rows"] == 400


def column(name: str, values: list[Any]) -> Any:
    return lambda log: log.set_column(log.column_names.index(name), name, [values])


SIZE = 400
FINDINGS = {
    "bad rows": (column("user", [None] * 40 + ["u"] * 360), {}, "error", "40 of 400 rows are bad"),
    "a few bad rows": (column("user", [None] * 4 + ["u"] * 396), {}, "note", "4 of 400 rows are bad"),
    "nulls": (column("store", [None] * 300 + ["s"] * 100), {}, "warning", "75% of column 'store' is null"),
    "names": (column("page", ["a b", "c"] * 200), {}, "note", "surface 'a b' is called a_b"),
    "one surface": (column("page", ["feed"] * SIZE), {}, "note", "there is one surface only"),
    "no label": (column("clicked", [None] * SIZE), {}, "warning", "the label of task click is never known"),
    "never": (column("bought", [0] * SIZE), {}, "warning", "the label of task buy is never 1"),
    "always": (column("clicked", [1] * SIZE), {}, "warning", "the label of task click is always 1"),
    "few": (
        column("page", ["a"] * 390 + ["b"] * 10),
        {"tasks": [{"name": "click", "column": "clicked"}]},
        "warning",
        "positives on surface b",
    ),
    "days": (column("ts", [START // DAY * DAY] * SIZE), {}, "warning", "all times are whole days"),
    "windows": (None, {"windows": {"count": 2}}, "warning", "there are only 2 windows"),
    "gaps": (column("ts", [START + n % 2 * 9 * DAY for n in range(SIZE)]), {}, "warning", "windows have no rows"),
    "histories": (column("clicked", [0] * SIZE), {}, "warning", "there are no engagements"),
    "dense": (None, {"dense": {"age": "ts"}}, "note", "dense columns are taken as they are: age"),
    "alone": (column("user", [f"u{n}" for n in range(SIZE)]), {}, "note", "every request has one candidate"),
    "ids": (column("store", list(range(SIZE))), {"requests": {"id": "store"}}, "note", "one candidate"),
    "late": (
        None,
        {"tasks": [{"name": "click", "column": "clicked", "delay_seconds": 5 * DAY}]},
        "note",
        "5.0 days late",
    ),
}


@pytest.mark.parametrize("case", FINDINGS)
def test_what_would_go_wrong_is_said_with_a_remedy(tmp_path: Path, case: str) -> None:
    change, changes, severity, what = FINDINGS[case]
    log = shop_log(SIZE)
    unchanged = profiled(tmp_path, log)
    assert not [each for each in unchanged.findings if each.severity == severity and what in each.what]
    found = profiled(tmp_path, change(log) if change else log, **changes)
    (finding,) = [each for each in found.findings if what in each.what]
    assert finding.severity == severity
    assert len(finding.remedy) > 10


def test_bad_rows_are_shown_by_reason(tmp_path: Path) -> None:
    log = column("user", [None] * 3 + ["u"] * 397)(shop_log())
    (bad,) = profiled(tmp_path, log).bad
    assert (bad.reason, bad.rows) == ("user: no id", 3)
    assert bad.first.startswith(f"{tmp_path / 'log.csv'} row 0: user=null; ")


def test_what_no_import_gets_past_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'sku' is missing"):
        profiled(tmp_path, shop_log(), item="sku")
