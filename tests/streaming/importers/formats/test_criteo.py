import gzip
import math
from pathlib import Path

import pytest

from streaming.errors import DataError
from streaming.importers.formats import criteo as module
from streaming.importers.formats.criteo import criteo
from tests.streaming.importers.formats import official
from tests.streaming.importers.formats.imports import import_layout

DAY_US = 86_400_000_000


def test_the_challenge_in_seven_windows_of_equally_many_rows(tmp_path: Path) -> None:
    rows = official.criteo_rows(70)
    official.write(tmp_path / "train.txt", rows, delimiter="\t")
    made = import_layout(criteo(tmp_path), tmp_path, tmp_path / "dataset")
    ordered = sorted(made.candidates, key=lambda row: row["time"])
    assert [row["label_click"] for row in ordered] == [row[0] for row in rows]
    assert [row["window"] for row in ordered] == [index // 10 for index in range(70)]
    # Nobody's past is mixed with anybody's.
    assert len({row["user_id"] for row in ordered}) == len({row["request_id"] for row in ordered}) == 70
    assert {(row["item_id"], row["surface"]) for row in ordered} == {(0, "display")}


def test_numbers_are_dense_and_categories_context(tmp_path: Path) -> None:
    official.write(tmp_path / "train.txt", official.criteo_rows(7), delimiter="\t")
    made = import_layout(criteo(tmp_path), tmp_path, tmp_path / "dataset")
    fourth = min((row for row in made.candidates if row["window"] == 3), key=lambda row: row["time"])
    assert made.dataset.config.dense == module.NUMBERS
    expected = [math.log1p(3), -math.log(2), -math.log(3), *([math.log(8)] * 10)]
    assert fourth["dense"] == pytest.approx(expected)
    assert [fourth[name] for name in module.CATEGORIES] == [None, *(["00000003"] * 25)]


def test_days_are_files_in_the_order_of_their_numbers_packed_or_not(tmp_path: Path) -> None:
    for day in (2, 10, 0):
        official.write(tmp_path / f"day_{day}", official.criteo_rows(4 + day), delimiter="\t")
    packed = gzip.compress((tmp_path / "day_2").read_bytes())
    (tmp_path / "day_2").unlink()
    (tmp_path / "day_2.gz").write_bytes(packed)
    (tmp_path / "day_2.notes").write_text("no data")
    made = import_layout(criteo(tmp_path), tmp_path, tmp_path / "dataset")
    sizes = [sum(row["window"] == window for row in made.candidates) for window in range(11)]
    assert sizes == [4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 14]
    assert made.dataset.windows[2].start - made.dataset.windows[0].start == 2 * DAY_US


def test_more_rows_than_fit_in_a_day_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 5)
    official.write(tmp_path / "day_0", official.criteo_rows(6), delimiter="\t")
    with pytest.raises(DataError, match="more than 5 rows in a day"):
        import_layout(criteo(tmp_path), tmp_path, tmp_path / "dataset")


def test_a_number_that_is_none_is_a_bad_row_and_no_missing_one(tmp_path: Path) -> None:
    rows = official.criteo_rows(6)
    rows[3][1] = "many"
    official.write(tmp_path / "train.txt", rows, delimiter="\t")
    with pytest.raises(DataError, match="1 of 6 rows are bad"):
        import_layout(criteo(tmp_path), tmp_path, tmp_path / "dataset")
