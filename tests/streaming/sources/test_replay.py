"""A rehearsal is as disorderly as it was asked to be, and no more."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.dataset import Dataset
from streaming.sources.replay import Rehearsal, Sent

DAY = 86_400


def arrange(dataset: Dataset, **config: float) -> list[Sent]:
    return Rehearsal.Config(**config).build().arrange(dataset)


def test_without_disorder_everything_comes_once_in_order_of_time(slow_shop: Dataset) -> None:
    sent = arrange(slow_shop)
    times = [message.time for message in sent]
    assert times == sorted(times)
    counts = Counter((message.kind, message.id, message.time) for message in sent)
    assert set(counts.values()) == {1}
    kinds = Counter(message.kind for message in sent)
    rows = [slow_shop.requests(window.index).num_rows for window in slow_shop.windows]
    assert kinds["request"] == sum(rows)
    assert kinds["engagement"] == sum(slow_shop.engagements(window.index).num_rows for window in slow_shop.windows)


@settings(max_examples=10, deadline=None)
@given(
    bound=st.sampled_from([0, 1, DAY, 60 * DAY]),
    partitions=st.integers(1, 3),
    late=st.sampled_from([0.0, 0.1]),
    twice=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 99),
)
def test_what_is_late_is_too_late_and_nothing_else_is(
    slow_shop: Dataset, bound: int, partitions: int, late: float, twice: float, seed: int
) -> None:
    config = {"shuffle_within_seconds": bound, "partitions": partitions, "late_share": late, "duplicate_share": twice}
    sent = arrange(slow_shop, **config, seed=seed)
    assert sent == arrange(slow_shop, **config, seed=seed)
    ends = [window.end for window in slow_shop.windows]
    clock: dict[tuple[str, int], int] = {}
    for message in sent:
        place = (message.kind, message.partition)
        before = clock.get(place, 0)
        closes = next((end for end in ends if message.time < end), None)
        assert message.late == (closes is not None and before >= closes + bound * 1_000_000)
        clock[place] = max(before, message.time)
    counts = Counter((message.kind, message.id, message.time) for message in sent)
    assert set(counts.values()) <= ({1, 2} if twice else {1})
    everything = {(message.kind, message.id, message.time) for message in arrange(slow_shop)}
    assert counts.keys() == everything
    some = any(message.late for message in sent)
    assert some == bool(late and bound <= DAY)


def test_a_label_comes_with_its_request_only_if_it_was_known_then(shop: Dataset, slow_shop: Dataset) -> None:
    at_once = [json.loads(message.payload) for message in arrange(shop) if message.kind == "request"]
    assert all(value is not None for row in at_once for value in row["label"]["purchase"])
    later = [json.loads(message.payload) for message in arrange(slow_shop)]
    assert all(row["label"]["purchase"] == [None] * 4 for row in later if row["kind"] == "request")
    for row in later:
        if row["kind"] == "labels":
            assert row["time"] == row["request_time"] + 432_000_000_000
            assert len(row["labels"]) >= 4


@pytest.mark.parametrize("config", [{"late_share": 1.0}, {"partitions": 0}, {"shuffle_within_seconds": -1}])
def test_nonsense_is_refused(config: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(config))):
        Rehearsal.Config(**config)
