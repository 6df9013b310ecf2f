"""The laws of no leakage about time, L1 to L4: change what a model must not know, and nothing may change.

Every test also changes something that the model may know, and sees that change: it can fail.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.dataset import Dataset
from streaming.errors import LeakageError
from streaming.features import DENSE
from streaming.importers.synthetic import Synthetic
from streaming.schema import microseconds

Row = dict[str, Any]

SCORED = 4
"""The window after those that ``resumed`` was trained on."""
MOMENT = timedelta(microseconds=1)
LATE = timedelta(days=3)


@pytest.fixture(scope="module")
def basket(dataset: Dataset) -> Row:
    """A request half-way through the window, whose user bought something of it: at that very moment."""
    rows = dataset.requests(SCORED).to_pylist()
    return next(row for row in rows[len(rows) // 2 :] if 1.0 in row["supervision"]["label_purchase"])


def request_ids(dataset: Dataset, chosen: Callable[[Row], bool]) -> list[int]:
    return [row["request_id"] for row in dataset.requests(SCORED).to_pylist() if chosen(row)]


def flip(row: Row, chosen: Callable[[datetime], bool] = lambda known: True) -> None:
    """Turn the known labels of a request round, those whose time of becoming known is chosen."""
    for task in ("purchase", "multiple"):
        labels, times = row["supervision"][f"label_{task}"], row["supervision"][f"label_time_{task}"]
        for place, (label, time) in enumerate(zip(labels, times, strict=True)):
            if label is not None and chosen(time):
                labels[place] = 1 - label


# L1: a request sees only engagements before it, strictly.


def others(rows: list[Row], moment: datetime) -> list[Row]:
    for row in rows:
        if row["time"] >= moment:
            row |= {"item_id": 1000 + (row["item_id"] + 7) % 24, "action": 1 - row["action"], "surface": -1}
    return rows


def none_left(rows: list[Row], moment: datetime) -> list[Row]:
    return [row for row in rows if row["time"] < moment]


def more(rows: list[Row], moment: datetime) -> list[Row]:
    burst = [
        {"user_id": user, "time": time, "item_id": item, "surface": item % 3, "action": 0, "quantity": 1.0}
        for user in {row["user_id"] for row in rows}
        for time in (moment, moment + MOMENT)
        for item in (1003, 1004, 1005)
    ]
    return sorted([*rows, *burst], key=lambda row: (row["user_id"], row["time"]))


@pytest.mark.parametrize("future", [others, none_left, more])
def test_l1_engagements_from_now_on_change_no_score_up_to_now(
    future, dataset: Dataset, base: pd.DataFrame, basket: Row, resumed, changed, moved, arms: set[str]
) -> None:
    now = basket["time"]
    data = changed(engagements=lambda window, rows: future(rows, now) if window >= SCORED else rows)
    scores = resumed(data).score(SCORED)
    early = request_ids(dataset, lambda row: row["time"] <= now)
    late = request_ids(dataset, lambda row: row["time"] > now)
    assert moved(base.loc[early], scores.loc[early]) == set()
    assert moved(base.loc[late], scores.loc[late]) == arms


def test_l1_a_moment_earlier_the_basket_would_see_itself(
    base: pd.DataFrame, basket: Row, resumed, changed, moved, arms
):
    def earlier(window: int, rows: list[Row]) -> list[Row]:
        for row in rows:
            if (row["user_id"], row["time"]) == (basket["user_id"], basket["time"]):
                row["time"] -= MOMENT
        return rows

    scores = resumed(changed(engagements=earlier)).score(SCORED)
    own = [basket["request_id"]]
    assert moved(base.loc[own], scores.loc[own]) == arms
    assert moved(base.drop(own), scores.drop(own)) == set()


# L2: a label is trained on once it is known, and not before.


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Labels become known three days after the request; of two requests at the very end of window 2, and just after."""
    path = tmp_path_factory.mktemp("late") / "data"
    config = Synthetic.Config(users=16, items=24, windows=4, candidates=6, label_delay_seconds=LATE.total_seconds())
    dataset = config.build(path)
    table = dataset.requests(2)
    rows = table.to_pylist()
    end = dataset.config.window_boundaries[2]
    for row, time in ((rows[0], end - MOMENT), (rows[1], end)):
        for task in ("purchase", "multiple"):
            times = row["supervision"][f"label_time_{task}"]
            times[:] = [known and time for known in times]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), dataset.request_file(2))
    return dataset


@pytest.fixture(scope="module")
def played_late(late: Dataset, trained, tmp_path_factory: pytest.TempPathFactory):
    return trained.elsewhere(tmp_path_factory.mktemp("played_late"), late.path).go(windows=SCORED)


def test_l2_a_label_is_trained_on_once_in_the_window_in_which_it_becomes_known(late: Dataset, played_late) -> None:
    rows = [row for window in late.windows for row in late.requests(window.index).to_pylist()]
    known = [
        (microseconds(time), surface)
        for row in rows
        for task in ("purchase", "multiple")
        for time, surface in zip(row["supervision"][f"label_time_{task}"], row["surface"], strict=True)
        if time is not None
    ]
    foundation, experts = played_late.foundation().learner, played_late.experts().trainers
    for window in late.windows:
        of_window = [surface for time, surface in known if window.start <= time < window.end]
        trained_on = sum(int(batch.labels.known_CT.sum()) for batch in foundation.batches(window))
        assert trained_on == len(of_window) > 0
        for index, name in enumerate(late.config.surfaces):
            batches = experts[name].learner.batches(window)
            assert sum(int(batch.requests.labels.known_CT.sum()) for batch in batches) == of_window.count(index) > 0
    assert any(time >= late.windows[-1].end for time, _ in known)  # and these on none


def test_l2_labels_that_become_known_later_change_nothing_before(
    late: Dataset, played_late, changed, moved, arms: set[str], tmp_path: Path
) -> None:
    watermark = late.config.window_boundaries[2]

    def unknown_yet(window: int, rows: list[Row]) -> list[Row]:
        for row in rows:
            flip(row, lambda known: known >= watermark)
        return rows

    data = changed(source=late.path, requests=unknown_yet)
    assert Dataset.open(data).requests(2) != late.requests(2)
    again = played_late.elsewhere(tmp_path / "run", data).go(windows=SCORED)
    until = microseconds(watermark)
    assert again.weights(until=until) == played_late.weights(until=until)
    assert [moved(again.said(window), played_late.said(window)) for window in (1, 2, 3)] == [set(), set(), set()]
    until = late.window(3).end
    assert again.weights(until=until) != played_late.weights(until=until)
    assert moved(again.said(4), played_late.said(4)) == arms


# L3: a snapshot publishes only what is not before its watermark.


def test_l3_every_window_was_published_by_the_snapshot_that_ends_where_it_starts(full, dataset: Dataset) -> None:
    segments = full.log.segments()
    assert [segment.window for segment in segments] == [1, 2, 3, 4]
    for segment in segments:
        assert segment.facts.watermark == dataset.window(segment.window).start <= segment.numpy("time").min()


def test_l3_newer_snapshots_do_not_publish_what_they_have_seen(full, dataset: Dataset, tmp_path: Path) -> None:
    played = full.copied(tmp_path / "run", dataset.path)
    (old,) = (segment for segment in played.log.segments() if segment.window == 2)
    table = old.table.combine_chunks()
    played.log.delete(old.snapshot, 2)
    again = played.foundation().publisher.publish(dataset.window(2))
    assert again.snapshot == old.snapshot != played.registry.current("FM").name
    assert again.table.equals(table)


def test_l3_the_store_refuses_a_snapshot_that_has_seen_the_window(full, dataset: Dataset) -> None:
    window = dataset.window(3)
    knows = full.registry.latest("FM", as_of=window.end)
    assert knows.watermark == window.end
    old = full.log.segment(full.registry.latest("FM", as_of=window.start).name, 3)
    table = full.log.rows(
        snapshot=knows,
        **{name: old.numpy(name) for name in ("request_id", "candidate_id", "item_id", "time")},
        representations={"penultimate": np.zeros((old.facts.rows, 8))},
        teacher_logits={},
    )
    with pytest.raises(LeakageError, match="law L3"):
        full.log.write(snapshot=knows, window=3, table=table, requests_digest=old.requests_digest)


def test_l3_the_future_changes_nothing_that_was_published_predicted_or_learned(
    full, dataset: Dataset, changed, moved, arms: set[str], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)

    def other_requests(window: int, rows: list[Row]) -> list[Row]:
        for row in rows if window >= 3 else []:
            flip(row)
            row["user_id"] = 100 + (row["user_id"] + 5) % 16
            row["item_id"] = (random.permutation(24)[: len(row["item_id"])] + 1000).tolist()
            row["dense"] = random.normal(size=(len(row["item_id"]), len(DENSE))).tolist()
            row["supervision"]["weight"] = [9.0] * len(row["item_id"])
        return rows

    def other_engagements(window: int, rows: list[Row]) -> list[Row]:
        return others(rows, dataset.config.window_boundaries[2])

    data = changed(requests=other_requests, engagements=other_engagements)
    again = full.elsewhere(tmp_path / "run", data).go(windows=SCORED)
    until = [dataset.window(window).start for window in (3, 4)]
    assert again.weights(until=until[0]) == full.weights(until=until[0])
    assert again.weights(until=until[1]) != full.weights(until=until[1])
    same, different = (1, 2), (3, 4)
    ours, theirs = ({one.window: one.table for one in each.log.segments()} for each in (again, full))
    assert [ours[window].equals(theirs[window]) for window in (*same, *different)] == [True, True, False, False]
    assert [moved(again.said(window), full.said(window)) for window in same] == [set(), set()]
    assert moved(again.said(4), full.said(4)) == arms


# L4: a whole window is predicted before anything of it is trained on.


def test_l4_the_labels_of_a_window_change_no_prediction_of_it(
    full, dataset: Dataset, changed, moved, arms: set[str], tmp_path: Path
) -> None:
    def flipped(window: int, rows: list[Row]) -> list[Row]:
        for row in rows if window == 3 else []:
            flip(row)
        return rows

    again = full.elsewhere(tmp_path / "run", changed(requests=flipped)).go(windows=SCORED)
    assert moved(again.said(3), full.said(3)) == set()
    assert moved(again.said(4), full.said(4)) == arms
