import csv
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from streaming.errors import DataError
from streaming.importers.formats.kuairand import LOG_COLUMNS, TASKS, kuairand
from tests.streaming.importers.formats import official
from tests.streaming.importers.formats.imports import Imported, import_layout

ROWS = os.environ.get("KUAIRAND_ROWS", "")
"""A Parquet file of liked or hated rows of KuaiRand-27K; ``label`` says which. They are not part of the project."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official.kuairand(tmp_path_factory.mktemp("kuairand"))


@pytest.fixture(scope="module")
def imported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    return import_layout(kuairand(folder), folder, tmp_path_factory.mktemp("out") / "dataset")


def logged(folder: Path) -> list[dict[str, int]]:
    rows = []
    for log in (folder / "data").glob("log_*.csv"):
        with log.open() as file:
            rows += [{name: int(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return rows


def moment(milliseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


def test_every_impression_is_one_candidate_with_its_signals(folder: Path, imported: Imported) -> None:
    found = {(row["user_id"], row["item_id"], row["time"]): row for row in imported.candidates}
    rows = logged(folder)
    assert len(rows) == len(found) == len(imported.candidates)
    for row in rows:
        candidate = found[row["user_id"], row["video_id"], moment(row["time_ms"])]
        assert candidate["surface"] == f"tab_{row['tab']}"
        assert candidate["is_rand"] == str(row["is_rand"])
        assert {task: candidate[f"label_{task}"] for task in TASKS} == {t: row[column] for t, column in TASKS.items()}
        assert candidate["label_played_3s"] == (row["play_time_ms"] >= 3000)
        assert candidate["label_comment_stay"] == (row["comment_stay_time"] >= 1)
        ended = row["time_ms"] + row["play_time_ms"] + row["profile_stay_time"] + row["comment_stay_time"]
        assert candidate["label_time_click"] == moment(ended)


def test_what_was_shown_at_one_time_is_one_request(imported: Imported) -> None:
    assert len({row["request_id"] for row in imported.candidates}) == len(imported.candidates) / 4


def test_a_click_is_history_from_the_end_of_playing_on(folder: Path, imported: Imported) -> None:
    expected = sorted(
        (row["user_id"], moment(row["time_ms"] + row["play_time_ms"] + row["comment_stay_time"]))
        for row in logged(folder)
        if row["is_click"]
    )
    clicks = sorted((row["user_id"], row["time"]) for row in imported.engagements if row["action"] == "click")
    assert clicks == expected


def test_attributes_are_read_and_what_knows_the_future_is_not(imported: Imported) -> None:
    video, user = imported.entity("items")[7], imported.entity("users")[3]
    assert (video["author_id"], video["music_id"], video["tag"]) == ("2", "1", "3")
    assert user["user_active_degree"] == "user_active_degree=1"
    attributes = imported.dataset.config.item_attributes
    assert {"visible_status", "play_cnt", "show_cnt"}.isdisjoint(attributes)
    assert imported.dataset.config.dense[0] == "duration"


def test_a_signal_is_known_an_hour_later_at_the_latest(tmp_path: Path) -> None:
    official.kuairand(tmp_path)
    log = tmp_path / "data" / "log_standard_4_08_to_4_21_pure.csv"
    row = official.kuairand_row(user_id=1, video_id=1, time_ms=official.START_MS, play_time_ms=10**9, is_click=1)
    official.write(log, [list(LOG_COLUMNS), row])
    layout = kuairand(tmp_path)
    (block,) = layout.reader(layout.mapping.rows.model_copy(update={"files": [str(log)]}), tmp_path, ["known_ms"])
    assert block.columns["known_ms"].to_pylist() == [official.START_MS + official.HOUR_MS]


def test_a_log_of_another_layout_is_one_error(tmp_path: Path) -> None:
    official.kuairand(tmp_path)
    official.write(tmp_path / "data" / "log_random_4_22_to_5_08_pure.csv", [[*LOG_COLUMNS[:-1]], [0] * 18])
    with pytest.raises(DataError, match="column 'tab' of the official layout is missing"):
        kuairand(tmp_path)


@pytest.mark.parametrize("lacking", ["log", "user_features", "video_features_basic"])
def test_a_folder_without_one_of_its_files_is_one_error(lacking: str, tmp_path: Path) -> None:
    official.kuairand(tmp_path)
    for file in (tmp_path / "data").glob(f"{lacking}_*.csv"):
        file.unlink()
    with pytest.raises(DataError, match=rf"Give the unpacked folder with {lacking}_"):
        kuairand(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not ROWS, reason="KUAIRAND_ROWS names no file")
def test_real_rows_in_the_official_layout(tmp_path: Path) -> None:
    """Rows of KuaiRand-27K that were liked or hated; the columns that they lack are filled in."""
    rows = pq.read_table(ROWS).to_pylist()
    official.kuairand(tmp_path, days=1)
    for log in (tmp_path / "data").glob("log_*.csv"):
        log.unlink()
    log = [official.kuairand_row(**row, is_like=row["label"], is_hate=1 - row["label"], tab=1) for row in rows]
    official.write(tmp_path / "data" / "log_standard_4_08_to_4_21_27k_part1.csv", [list(LOG_COLUMNS), *log])
    real = import_layout(kuairand(tmp_path), tmp_path, tmp_path / "dataset")
    assert len(real.candidates) == len(rows)
    assert len(real.dataset.windows) >= 14
    for column, task in (("is_click", "click"), ("label", "like"), ("is_comment", "comment")):
        assert sum(row[f"label_{task}"] for row in real.candidates) == sum(row[column] for row in rows)
    assert {row["surface"] for row in real.candidates} == {"tab_1"}
    assert all(row["label_time_click"] >= row["time"] for row in real.candidates)
