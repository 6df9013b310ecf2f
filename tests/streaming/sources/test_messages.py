"""What a message may say: everything that the data set can hold, and nothing else."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.dataset import Dataset
from streaming.sources.messages import END, BadMessage, MessageReader, encode
from streaming.sources.replay import Rehearsal


@pytest.fixture(scope="module")
def reader(slow_shop: Dataset) -> MessageReader:
    return MessageReader.of(slow_shop)


@pytest.fixture(scope="module")
def one(slow_shop: Dataset) -> dict[str, dict[str, Any]]:
    """A message of each kind."""
    sent = Rehearsal.Config().build().arrange(slow_shop)
    return {message.kind: json.loads(message.payload) for message in reversed(sent)}


def test_everything_in_a_data_set_can_be_said(slow_shop: Dataset, reader: MessageReader) -> None:
    sent = Rehearsal.Config().build().arrange(slow_shop)
    for message in sent:
        read = reader.read(message.payload)
        assert (read.kind, read.id, read.time) == (message.kind, message.id, message.time)
        assert encode(read.kind, read.row) == message.payload
    assert {message.kind for message in sent} == {"request", "engagement", "labels"}
    assert reader.read(END).kind == "end"


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_json_keeps_every_float32(value: float) -> None:
    back = json.loads(encode("end", {"value": float(np.float32(value))}))["value"]
    assert np.float32(back).tobytes() == np.float32(value).tobytes()


@given(st.binary() | st.none() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_anything_else_is_refused_and_nothing_breaks(reader: MessageReader, payload: bytes | str | None) -> None:
    with pytest.raises(BadMessage):
        reader.read(payload.encode() if isinstance(payload, str) else payload)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers() | st.none() | st.text())
)


@given(kind=st.sampled_from(["request", "engagement", "labels"]), data=st.data())
def test_a_field_of_another_kind_is_refused_or_fits(
    reader: MessageReader, one: dict[str, dict[str, Any]], kind: str, data: st.DataObject
) -> None:
    """Whatever stands in a field, the message is read as one that the data set can hold, or refused with a reason."""
    message = dict(one[kind])
    field = data.draw(st.sampled_from(sorted(message.keys())))
    message[field] = data.draw(JUNK)
    try:
        read = reader.read(json.dumps(message).encode())
    except BadMessage:
        return
    assert type(read.time) is int and type(read.id) is int
    assert type(message[field]) is not bool and message[field] is not None


NAN = float("nan")


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("request", {"v": 2}, "version '2' is unknown; known is 1"),
        ("request", {"v": True}, "version 'True' is unknown"),
        ("request", {"kind": "visit"}, "kind 'visit' is unknown; allowed are request, engagement, labels, end"),
        ("request", {"colour": 1}, "unknown field 'colour'"),
        ("request", {"dense": ...}, "dense: missing"),
        ("request", {"time": 1.5}, "time: must be an integer of 64 bits"),
        ("request", {"request_id": 2**63}, "request_id: must be an integer of 64 bits"),
        ("request", {"user_id": 5}, "user_id: 5 is not in users.parquet"),
        ("request", {"item_id": [1000, 1001, 1002, 7]}, "item_id: 7 is not in items.parquet"),
        ("request", {"item_id": [1000]}, "item_id: must be a list of 4, one a candidate"),
        ("request", {"candidate_id": [0, 1, 2, 2]}, "candidate_id: negative, or repeated within the request"),
        ("request", {"surface": [0, 1, 2, 0]}, "surface: 2 is out of range; there are 2"),
        ("request", {"dense": [[0.0]] * 4}, "finite numbers"),
        ("request", {"weight": [1, 1, 1, -1]}, "weight: must be finite, 0 or more"),
        ("request", {"weight": [1, 1, 1, 1e39]}, "weight: must be finite, 0 or more"),
        ("request", {"context": {"store": 1}}, "context: must be an object with exactly store, weekday, hour"),
        ("request", {"context": {"store": "\ud800", "weekday": 1, "hour": 2}}, "not text that UTF-8 can hold"),
        ("request", {"tags": {"split_trip": 0}}, "tags.split_trip: must be true or false"),
        ("request", {"label": {}}, "label: must be an object with exactly purchase, multiple"),
        ("request", {"weight": [1, 1, 1, NAN]}, "NaN is not a number of JSON"),
        ("engagement", {"surface": -2}, "surface: -2 is out of range"),
        ("engagement", {"action": 2}, "action: 2 is out of range; there are 2"),
        ("engagement", {"quantity": -1}, "quantity: must be finite, 0 or more"),
        ("engagement", {"item_id": 7}, "item_id: 7 is not in items.parquet"),
        ("labels", {"labels": [[0, "purchase", 2]]}, "label.purchase: allowed are 0 and 1"),
        ("labels", {"labels": [[0, "click", 1]]}, "each must be [candidate_id, task, label]; tasks are purchase, mul"),
        ("labels", {"labels": [[0, [], 1]]}, "each must be [candidate_id, task, label]"),
        ("labels", {"labels": [[-1, "purchase", 1]]}, "a candidate_id is not an integer of 32 bits"),
        ("labels", {"request_time": 0}, "known before its request, or later than delay_seconds allows"),
    ],
)
def test_a_mistake_is_named(
    reader: MessageReader, one: dict[str, dict[str, Any]], kind: str, change: dict[str, Any], reason: str
) -> None:
    message = {name: value for name, value in (one[kind] | change).items() if value is not ...}
    with pytest.raises(BadMessage) as caught:
        reader.read(json.dumps(message).encode())
    assert reason in str(caught.value)


def test_labels_of_a_request_and_their_times_go_together(reader: MessageReader, one: dict[str, dict[str, Any]]) -> None:
    request = one["request"]
    for label, time, reason in (
        (1.0, None, "a label and its time are both there or both null"),
        (0.5, request["time"], "allowed are 0 and 1"),
        (1.0, request["time"] - 1, "known before its request"),
        (1.0, request["time"] + 432_000_000_001, "later than delay_seconds allows"),
    ):
        said = {"label": {"purchase": [label] * 4, "multiple": [None] * 4}}
        said["label_time"] = {"purchase": [time] * 4, "multiple": [None] * 4}
        with pytest.raises(BadMessage, match=reason):
            reader.read(json.dumps(request | said).encode())
