from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from streaming.errors import DataError
from streaming.importers.formats.taobao import taobao
from tests.streaming.importers.formats import official
from tests.streaming.importers.formats.imports import import_layout


def test_the_official_layout(tmp_path: Path) -> None:
    source = official.taobao(tmp_path / "source")
    made = import_layout(taobao(source), source, tmp_path / "dataset")
    rows = [line.split(",") for line in (source / "raw_sample.csv").read_text().splitlines()[1:]]
    found = {(row["user_id"], row["item_id"], row["time"]): row for row in made.candidates}
    assert len(found) == len(made.candidates) == len(rows) == 200
    for user, time, ad, pid, _, click in rows:
        row = found[int(user), int(ad), datetime.fromtimestamp(int(time), UTC)]
        assert (row["surface"], row["label_click"]) == (f"pid_{pid}", int(click))
    assert {row["action"] for row in made.engagements} == {"click"}
    assert len(made.engagements) == sum(int(row[-1]) for row in rows)
    # Windows are days in China: the first begins at 16:00 UTC.
    assert made.dataset.windows[0].start == 1_494_000_000_000_000


def test_attributes_with_their_odd_names_and_values(tmp_path: Path) -> None:
    source = official.taobao(tmp_path / "source")
    made = import_layout(taobao(source), source, tmp_path / "dataset")
    ads, users = made.entity("items"), made.entity("users")
    assert (ads[1]["brand"], ads[2]["brand"]) == (None, "2")
    assert [ads[ad]["price_band"] for ad in (0, 1, 2)] == ["1", "2", "3"]  # 2.5, 5 and 10
    assert users[6]["new_user_class_level"] == "2"
    assert users[6]["pvalue_level"] is None


@pytest.mark.parametrize("end", ["\n", ""])
def test_reczoo_in_the_order_of_its_rows(end: str, tmp_path: Path) -> None:
    source = official.taobao_x1(tmp_path / "source")
    (source / "train.csv").write_text((source / "train.csv").read_text().rstrip("\n") + end)
    made = import_layout(taobao(source), source, tmp_path / "dataset")
    rows = [row for name in ("train", "test") for row in (source / f"{name}.csv").read_text().splitlines()[1:]]
    ordered = sorted(made.candidates, key=lambda row: row["time"])
    assert len({row["time"] for row in ordered}) == len(ordered) == len(rows) == 160
    assert [str(int(row["label_click"])) for row in ordered] == [row.split(",")[0] for row in rows]
    assert [str(row["user_id"]) for row in ordered] == [row.split(",")[4] for row in rows]
    assert [row["window"] for row in ordered] == [index // 20 for index in range(160)]
    assert (ordered[-1]["time"] - ordered[0]["time"]) / timedelta(milliseconds=1) == 159
    assert made.dataset.config.context == []
    assert {"btag_his", "cate_his"}.isdisjoint(made.dataset.config.item_attributes)


def test_a_raw_folder_without_attributes_is_one_error(tmp_path: Path) -> None:
    source = official.taobao(tmp_path / "source")
    (source / "ad_feature.csv").unlink()
    with pytest.raises(DataError, match=r"ad_feature\.csv: cannot be read"):
        taobao(source)


def test_reczoo_files_of_another_layout_are_one_error(tmp_path: Path) -> None:
    source = official.taobao_x1(tmp_path / "source")
    official.write(source / "test.csv", [["clk", "userid"], [1, 2]])
    with pytest.raises(DataError, match="column 'cms_segid' of the official layout is missing"):
        taobao(source)
