"""What is kept of a history is what would be encoded of it now, whatever was asked before."""

from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.encoding import Reused, encoded_from
from foundation.histories import EncodedHistories, events_of, keys_of
from foundation.inference import CandidateScorer
from foundation.model import FoundationModel, FoundationOutput
from streaming.batch import RequestBatch
from tests.foundation.asking import HISTORY, NOW, SECOND, Ask, Life, batch_of, built, rows_projected

OPTIONS: dict[str, dict[str, int]] = {
    "plain": {},
    "three layers": {"layers": 3},
    "near": {"max_distance": 3},
    "near with tail": {"max_distance": 3, "full_tail": 2},
    "no times": {"time_buckets": 0},
}
CLOSE = 1e-5
"""Largest difference, against the largest value."""
ASKS = st.builds(
    Ask,
    user=st.integers(0, 1),
    at=st.sampled_from([0, 1, 2, 40, 300, 301, 90_000, -100]).map(lambda seconds: NOW + seconds * SECOND),
    hour=st.sampled_from([0, 0, 0, 1]),
    unknown=st.sampled_from([frozenset(), frozenset({6}), frozenset({6, 7}), frozenset({2})]),
    items=st.lists(st.integers(0, 19), max_size=4).map(tuple),
)


@pytest.fixture(scope="module")
def models() -> dict[str, FoundationModel]:
    return {name: built(**options) for name, options in OPTIONS.items()}


@pytest.fixture(scope="module")
def plain(models: dict[str, FoundationModel]) -> FoundationModel:
    return models["plain"]


def owners(batch: RequestBatch, asks: list[Ask]) -> list[int]:
    assert len(batch) == len(asks)
    return [ask.user for ask in asks]


@torch.inference_mode()
def score(
    model: FoundationModel, kept: EncodedHistories, asks: list[Ask], *, most: int = HISTORY
) -> tuple[FoundationOutput, Reused]:
    batch = batch_of(asks, most=most)
    histories = encoded_from(kept, model, batch, owners=owners(batch, asks))
    return CandidateScorer.Config().build(model).over(histories), histories.reused


def anew(model: FoundationModel, asks: list[Ask], *, most: int = HISTORY) -> FoundationOutput:
    return CandidateScorer.Config().build(model).score(batch_of(asks, most=most))


def pairs(actual: FoundationOutput, expected: FoundationOutput) -> list[tuple[Tensor, Tensor]]:
    return [(getattr(actual, field.name), getattr(expected, field.name)) for field in fields(FoundationOutput)]


def assert_close(actual: FoundationOutput, expected: FoundationOutput) -> None:
    for mine, theirs in pairs(actual, expected):
        assert mine.shape == theirs.shape
        if len(theirs):
            assert float((mine - theirs).abs().max() / theirs.abs().max()) <= CLOSE


def assert_equal(actual: FoundationOutput, expected: FoundationOutput) -> None:
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs(actual, expected))


@pytest.mark.parametrize("options", list(OPTIONS))
@settings(max_examples=25, deadline=None)
@given(
    calls=st.lists(st.lists(ASKS, min_size=1, max_size=4), min_size=2, max_size=6),
    most=st.sampled_from([HISTORY, 12]),
    room=st.sampled_from([14, 400]),
)
def test_whatever_was_asked_before_an_answer_is_the_same(
    models: dict[str, FoundationModel], options: str, calls: list[list[Ask]], most: int, room: int
) -> None:
    """Users, times earlier and later, contexts, events that come late, and little room, in any order."""
    kept = EncodedHistories(most=room << 10)
    for asks in calls:
        answer, reused = score(models[options], kept, asks, most=most)
        assert_close(answer, anew(models[options], asks, most=most))
        for outcome, count in asdict(reused).items():
            event(outcome, str(bool(count)))


def test_an_unchanged_history_is_not_encoded_again_to_the_bit(plain: FoundationModel) -> None:
    kept, asks = EncodedHistories(most=1 << 20), [Ask(user=0)]
    first, reused = score(plain, kept, asks)
    assert reused == Reused(miss=1)
    other = [replace(asks[0], items=(9, 2), at=NOW + 1)]
    with rows_projected(plain) as rows:
        second, reused = score(plain, kept, other)
    assert reused == Reused(hit=1)
    assert rows == [2]
    assert_equal(first, anew(plain, asks))
    assert_equal(second, anew(plain, other))


def test_a_history_that_grew_is_extended(plain: FoundationModel) -> None:
    late = NOW + 10_000 * SECOND
    kept, asks = EncodedHistories(most=1 << 20), [Ask(user=0, at=late, unknown=frozenset(range(6, 12)))]
    score(plain, kept, asks)
    grown = [replace(asks[0], unknown=frozenset(range(8, 12)))]
    with rows_projected(plain) as rows:
        answer, reused = score(plain, kept, grown)
    assert (reused, rows) == (Reused(extended=1), [2, 3])
    assert_close(answer, anew(plain, grown))
    assert score(plain, kept, grown)[1] == Reused(hit=1)


def test_only_what_is_new_in_a_batch_is_encoded(plain: FoundationModel) -> None:
    kept, late = EncodedHistories(most=1 << 20), NOW + 10_000 * SECOND
    known = Ask(user=0, at=late, unknown=frozenset(range(6, 12)))
    score(plain, kept, [known, replace(known, user=1)])
    asks = [
        replace(known, user=2, items=(5,)),
        known,
        replace(known, user=1, unknown=frozenset(range(7, 12))),
        Ask(user=0, at=0),
    ]
    with rows_projected(plain) as rows:
        answer, reused = score(plain, kept, asks)
    assert reused == Reused(hit=1, extended=1, miss=1)
    assert rows == [(2 + 6) + 1 + 2, 3 + 1 + 3 + 3]
    assert_close(answer, anew(plain, asks))


@pytest.mark.parametrize("change", [{"hour": 1}, {"age": 1}, {"user": 1}], ids=str)
def test_another_context_is_another_history(plain: FoundationModel, change: dict[str, Any]) -> None:
    kept, ask = EncodedHistories(most=1 << 20), Ask(user=0)
    score(plain, kept, [ask])
    other = [replace(ask, **change)]
    answer, reused = score(plain, kept, other)
    assert reused == Reused(miss=1)
    assert_equal(answer, anew(plain, other))


def test_models_do_not_share(models: dict[str, FoundationModel]) -> None:
    kept, asks = EncodedHistories(most=1 << 20), [Ask(user=0)]
    for name in ("plain", "near"):
        answer, reused = score(models[name], kept, asks)
        assert reused == Reused(miss=1)
        assert_equal(answer, anew(models[name], asks))


def test_an_event_that_passes_into_another_bucket_is_encoded_anew(models: dict[str, FoundationModel]) -> None:
    """Days later all buckets are others; without a bias by time, age says nothing."""
    ask = Ask(user=0, at=NOW + 10_000 * SECOND)
    later = [replace(ask, at=NOW + 90 * 86_400 * SECOND)]
    for name, expected in (("plain", Reused(miss=1)), ("no times", Reused(hit=1))):
        kept = EncodedHistories(most=1 << 20)
        score(models[name], kept, [ask])
        answer, reused = score(models[name], kept, later)
        assert reused == expected
        assert_close(answer, anew(models[name], later))


def test_a_full_tail_is_never_extended(models: dict[str, FoundationModel]) -> None:
    model, kept, late = models["near with tail"], EncodedHistories(most=1 << 20), NOW + 10_000 * SECOND
    ask = Ask(user=0, at=late, unknown=frozenset(range(6, 12)))
    score(model, kept, [ask])
    for unknown, expected in (
        (range(7, 12), Reused(miss=1)),
        (range(7, 12), Reused(hit=1)),
        (range(6, 12), Reused(miss=1)),
    ):
        asks = [replace(ask, unknown=frozenset(unknown))]
        answer, reused = score(model, kept, asks)
        assert reused == expected
        assert_close(answer, anew(model, asks))


def test_a_history_at_its_limit_loses_its_first_event_and_is_encoded_anew(plain: FoundationModel) -> None:
    kept, late = EncodedHistories(most=1 << 20), NOW + 10_000 * SECOND
    ask = Ask(user=0, at=late, unknown=frozenset({11}))
    score(plain, kept, [ask])
    assert score(plain, kept, [replace(ask, unknown=frozenset())])[1] == Reused(miss=1)


@settings(max_examples=25, deadline=None)
@given(user=st.integers(0, 5), later=st.integers(1, 400), earlier=st.integers(1, 10**6))
def test_an_earlier_request_sees_nothing_of_later_events(
    plain: FoundationModel, user: int, later: int, earlier: int
) -> None:
    """Whatever numbers are kept of events that are not before it (law L1)."""
    kept = EncodedHistories(most=1 << 20)
    first, second = (Ask(user=user, at=NOW + seconds * SECOND) for seconds in (later, later - earlier))
    score(plain, kept, [first], most=12)
    batch = batch_of([first], most=12)
    found = kept.find(keys_of(plain, batch, [user])[0], events_of(plain, batch))
    assert found is not None and found[1] == found[0].length == int((Life.of(user).time < first.at).sum())
    before = int((Life.of(user).time < second.at).sum())
    with torch.inference_mode():
        for layer in found[0].layers:
            layer.keys_SHD[2 + before :] = torch.nan
            layer.values_SHV[2 + before :] = torch.nan
    assert_close(score(plain, kept, [second], most=12)[0], anew(plain, [second], most=12))
