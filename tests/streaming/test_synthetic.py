from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from streaming.dataset import Dataset
from streaming.errors import DataError
from streaming.features import DENSE
from streaming.importers.synthetic import Synthetic


def flat(dataset: Dataset, label: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label (NaN = unknown), dense and label time of all candidates."""
    labels, dense, times = [], [], []
    for window in dataset.windows:
        table = dataset.requests(window.index)
        supervision = table["supervision"].combine_chunks()
        labels.append(supervision.field(f"label_{label}").flatten().to_numpy(zero_copy_only=False))
        times.append(supervision.field(f"label_time_{label}").flatten().to_numpy(zero_copy_only=False))
        dense.append(table["dense"].combine_chunks().flatten().flatten().to_numpy().reshape(-1, len(DENSE)))
    return np.concatenate(labels), np.concatenate(dense), np.concatenate(times)


def test_has_the_shape_asked_for(tiny_dataset: Dataset) -> None:
    rows = sum(tiny_dataset.requests(window.index).num_rows for window in tiny_dataset.windows)
    assert rows == 40 * 2 * 6
    assert tiny_dataset.items().num_rows == 60
    assert tiny_dataset.users().num_rows == 40
    assert len(flat(tiny_dataset, "purchase")[0]) == rows * 8


def test_history_predicts_purchases(tiny_dataset: Dataset) -> None:
    label, dense, _ = flat(tiny_dataset, "purchase")
    seen = dense[:, DENSE.index("user_category_count")] > 0
    assert label[seen].mean() > 3 * label[~seen].mean()


def test_multiple_is_known_where_bought(tiny_dataset: Dataset) -> None:
    purchase, multiple = flat(tiny_dataset, "purchase")[0], flat(tiny_dataset, "multiple")[0]
    np.testing.assert_array_equal(~np.isnan(multiple), purchase == 1)
    assert 0 < np.nanmean(multiple) < 1


def test_every_purchase_is_an_engagement(tiny_dataset: Dataset) -> None:
    table = tiny_dataset.requests(3)
    bought = {
        (user, time, item)
        for user, time, items, outcome in zip(
            *(table[name].to_pylist() for name in ("user_id", "time", "item_id", "supervision")), strict=True
        )
        for item, label in zip(items, outcome["label_purchase"], strict=True)
        if label == 1
    }
    log = tiny_dataset.engagements(3)
    engaged = set(zip(*(log[name].to_pylist() for name in ("user_id", "time", "item_id")), strict=True))
    assert bought
    assert bought <= engaged


def test_the_seed_decides(tmp_path: Path, tiny_dataset: Dataset) -> None:
    again = Synthetic.Config().build(tmp_path / "again")
    other = Synthetic.Config(seed=1).build(tmp_path / "other")
    for window in again.windows:
        assert again.requests_digest(window.index) == tiny_dataset.requests_digest(window.index)
        assert other.requests_digest(window.index) != tiny_dataset.requests_digest(window.index)


def test_labels_may_come_late(tmp_path: Path) -> None:
    late = Synthetic.Config(windows=2, label_delay_seconds=3600).build(tmp_path / "late")
    table = late.requests(1)
    known_at = (
        table["supervision"].combine_chunks().field("label_time_purchase").flatten().to_numpy(zero_copy_only=False)
    )
    time = np.repeat(table["time"].to_numpy(), 8)
    assert np.unique((known_at - time) / np.timedelta64(1, "s")).tolist() == [3600.0]
    assert [task.delay_seconds for task in late.config.tasks] == [3600.0, 3600.0]


def test_reports_progress_and_refuses_to_overwrite(tmp_path: Path) -> None:
    seen: list[float] = []
    Synthetic.Config(windows=1).build(tmp_path / "one", lambda _what, share: seen.append(share))
    assert seen[-1] == 1.0
    with pytest.raises(DataError, match="never overwrites"):
        Synthetic.Config(windows=1).build(tmp_path / "one")


def test_more_candidates_than_items_are_refused() -> None:
    with pytest.raises(ValidationError, match="at most items"):
        Synthetic.Config(items=6, candidates=7)
