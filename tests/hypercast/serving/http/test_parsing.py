"""Bodies: what fits becomes a question, whatever else a client may send is refused with a reason."""

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypercast.serving.config import Limits, ServingConfig
from hypercast.serving.http.parsing import AHEAD, Parser, Refusal, RequestIds
from streaming.schema import DatasetConfig, TaskConfig

DATASET = DatasetConfig(
    name="d",
    description="d",
    provenance="d",
    licence="d",
    surfaces=["home", "mail"],
    actions=["view", "buy"],
    tasks=[TaskConfig(name="click")],
    dense=["price", "age"],
    context=["store"],
    window_boundaries=["2020-01-01T00:00:00Z", "2020-01-08T00:00:00Z"],
)
GOOD: dict[str, Any] = {
    **{"surface": "mail", "user_id": 3, "time": 5, "item_ids": [4, 8], "context": {"store": "a"}},
    **{"dense": {"price": [1, 2.5]}, "request_id": 9},
}
EVENT: dict[str, Any] = {"user_id": 3, "item_id": 4, "time": 5, "surface": None, "action": "buy"}


def parser(clock: str = "given", **limits: Any) -> Parser:
    config = ServingConfig(clock=clock, limits=Limits(items=4, events=2, **limits))  # type: ignore[arg-type]
    return Parser(dataset=DATASET, given=["price"], config=config)


def refused(call: Any, body: Any) -> Refusal:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(Refusal) as caught:
        call(data)
    told = caught.value.told
    assert told.keys() == {"error", "where", "allowed", "example"} and all(told.values())
    json.dumps(told, allow_nan=False).encode()  # can be sent
    return caught.value


def test_a_question_as_it_was_asked() -> None:
    question = parser().question(json.dumps(GOOD).encode())
    assert (question.request_id, question.surface, question.user_id, question.time) == (9, "mail", 3, 5)
    assert question.item_ids.dtype == np.int64 and question.item_ids.tolist() == [4, 8]
    assert question.context == {"store": "a"}
    assert question.dense["price"].dtype == np.float32 and question.dense["price"].tolist() == [1.0, 2.5]


def test_examples_can_be_sent_as_they_are() -> None:
    for clock in ("given", "wall"):
        made = parser(clock)
        assert len(made.question(json.dumps(made.example).encode()).item_ids) == 2
        assert len(made.events(json.dumps(made.event_example).encode())) == 1


def test_where_time_is_the_clocks_it_cannot_be_given() -> None:
    made = parser("wall")
    assert refused(made.question, GOOD).told["where"] == "time"
    question = made.question(json.dumps({name: GOOD[name] for name in GOOD if name != "time"}).encode())
    assert question.time > 1_700_000_000_000_000
    ahead = {"events": [{**EVENT, "time": question.time + 2 * AHEAD}]}
    assert refused(made.events, ahead).told["where"] == "events[0].time"


@pytest.mark.parametrize(
    ("changes", "status", "where"),
    [
        ({"surface": "attic"}, 422, "surface"),
        ({"surface": 0}, 422, "surface"),
        ({"surface": ["home"]}, 422, "surface"),
        ({"user_id": True}, 422, "user_id"),
        ({"user_id": 2**63}, 422, "user_id"),
        ({"user_id": 1.0}, 422, "user_id"),
        ({"user_id": "1"}, 422, "user_id"),
        ({"time": -1}, 422, "time"),
        ({"time": 2**63 - 1}, 422, "time"),
        ({"item_ids": []}, 422, "item_ids"),
        ({"item_ids": {}}, 422, "item_ids"),
        ({"item_ids": [1, -1]}, 422, "item_ids[1]"),
        ({"item_ids": [1, True]}, 422, "item_ids[1]"),
        ({"item_ids": [1, 10**400]}, 422, "item_ids[1]"),
        ({"item_ids": [1, 2, 3, 4, 5]}, 413, "item_ids"),
        ({"context": {"store": 1.5}}, 422, "context.store"),
        ({"context": {"store": "x" * 300}}, 422, "context.store"),
        ({"context": {"store": "\ud800"}}, 422, "context.store"),
        ({"context": {"colour": 1}}, 422, "context.colour"),
        ({"context": []}, 422, "context"),
        ({"dense": {}}, 422, "dense.price"),
        ({"dense": {"price": [1]}}, 422, "dense.price"),
        ({"dense": {"price": [1, 1e39]}}, 422, "dense.price"),
        ({"dense": {"price": [1, True]}}, 422, "dense.price"),
        ({"dense": {"price": [1, 2], "age": [1, 2]}}, 422, "dense.age"),
        ({"request_id": -1}, 422, "request_id"),
        ({"candidate_ids": [0]}, 422, "candidate_ids"),
        ({"candidate_ids": [True, 1, 2]}, 422, "candidate_ids"),
        ({"candidate_ids": [2**31, 1, 2]}, 422, "candidate_ids"),
        ({"more": 1}, 422, "more"),
        ({"\n" * 99: 1}, 422, "\\n" * 40),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], status: int, where: str) -> None:
    refusal = refused(parser().question, GOOD | changes)
    assert (refusal.status, refusal.told["where"]) == (status, where)


@pytest.mark.parametrize("name", ["surface", "user_id", "item_ids", "time"])
def test_what_is_missing_is_named(name: str) -> None:
    assert refused(parser().question, {key: GOOD[key] for key in GOOD if key != name}).told["where"] == name


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"1", b"null", b"\xff\xfe", b'{"a": NaN}', b'{"a": Infinity}', b"[" * 200_000, b"9" * 5000],
)
def test_what_is_no_object_is_no_json(body: bytes) -> None:
    assert refused(parser().question, body).status == 400
    assert refused(parser().events, body).status == 400


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"user_id": None}, "user_id"),
        ({"item_id": -1}, "item_id"),
        ({"time": 1.5}, "time"),
        ({"surface": "attic"}, "surface"),
        ({"action": 1}, "action"),
        ({"more": 1}, "more"),
    ],
)
def test_engagements_that_do_not_fit_are_named(changes: dict[str, Any], where: str) -> None:
    assert refused(parser().events, {"events": [EVENT, EVENT | changes]}).told["where"] == f"events[1].{where}"


def test_engagements_are_numbered_as_the_data_set_does() -> None:
    events = parser().events(json.dumps({"events": [EVENT, EVENT | {"surface": "mail", "action": "view"}]}).encode())
    assert [(event["surface"], event["action"]) for event in events] == [(-1, 1), (1, 0)]


def test_too_many_engagements_are_refused() -> None:
    assert refused(parser().events, {"events": [EVENT] * 3}).status == 413


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150)
@given(key=st.sampled_from(sorted(GOOD)), value=JSON)
def test_any_value_in_any_place_is_a_question_or_a_refusal(key: str, value: Any) -> None:
    body = json.dumps(GOOD | {key: value}).encode()
    with contextlib.suppress(Refusal):  # anything else is a failure
        question = parser().question(body)
        assert question.item_ids.dtype == np.int64 and (question.item_ids >= 0).all()
        assert all(np.isfinite(column).all() for column in question.dense.values())


@settings(max_examples=100)
@given(body=st.binary(max_size=200))
def test_any_bytes_are_refused(body: bytes) -> None:
    for call in (parser().question, parser().events):
        with pytest.raises(Refusal):
            call(body)


def test_numbers_of_requests_never_come_twice() -> None:
    ids = RequestIds()
    numbers = [ids.next() for _ in range(10_000)]
    assert len(set(numbers)) == 10_000 and numbers == sorted(numbers) and 0 <= min(numbers) <= max(numbers) < 2**63
