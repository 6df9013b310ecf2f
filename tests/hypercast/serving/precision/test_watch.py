"""The watch looks at the share it is to, changes no answer, and gives up a model that strays."""

import logging
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hypercast.serving.precision.compact import Precision, compact
from hypercast.serving.precision.watch import AccuracyWatch
from tests.hypercast.serving.precision.world import World, never_float32

LOGITS = torch.linspace(-3, 3, 100)[:, None]


def answer(shift: float, calls: list[float] | None = None) -> Callable[..., SimpleNamespace]:
    def say(scale: float = 1.0) -> SimpleNamespace:
        if calls is not None:
            calls.append(shift)
        return SimpleNamespace(logit_CT=LOGITS * scale + shift)

    return say


def watch(shift: float, calls: list[float] | None = None, **settings: float) -> AccuracyWatch[SimpleNamespace]:
    config = AccuracyWatch.Config.model_validate({"share": 1.0, "least": 300, **settings})
    return AccuracyWatch(config=config, compact=answer(shift, calls), reference=answer(0.0, calls))


def test_the_share_is_watched_and_every_answer_is_the_compact_one() -> None:
    calls: list[float] = []
    watched = watch(0.001, calls, share=0.2)
    for _ in range(1000):
        assert torch.equal(watched().logit_CT, LOGITS + 0.001)
    counters = watched.counters()
    assert counters["requests"] == calls.count(0.001) == 1000
    assert counters["watched"] == calls.count(0.0)
    assert 150 < counters["watched"] < 250
    assert counters["watched_candidates"] == 100 * counters["watched"]
    assert counters["fallbacks"] == counters["alarms"] == 0
    assert 0 < counters["ne_cost_pct"] < 0.001


def test_one_that_strays_is_replaced_once_enough_was_seen_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    watched = watch(0.5)
    with caplog.at_level(logging.WARNING):
        shifts = [float((watched().logit_CT - LOGITS).mean()) for _ in range(6)]
    assert shifts == pytest.approx([0.5, 0.5, 0.5, 0.0, 0.0, 0.0])
    assert watched.strayed
    counters = watched.counters()
    assert (counters["alarms"], counters["fallbacks"], counters["watched"]) == (1, 3, 3)
    assert counters["ne_cost_pct"] > watched.config.ne_cost_pct
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    watched.reset()
    assert float((watched().logit_CT - LOGITS).mean()) == pytest.approx(0.5)
    assert watched.counters()["fallbacks"] == 3


def test_what_happens_is_heard_as_it_happens() -> None:
    heard: list[tuple[str, bool]] = []
    watched = AccuracyWatch(
        config=AccuracyWatch.Config(share=1.0, least=150),
        compact=answer(0.5),
        reference=answer(0.0),
        listener=lambda event, cost: heard.append((event, cost > 0.05)),
    )
    for _ in range(3):
        watched()
    expected = [("compact", False), ("watched", True), ("compact", True), ("watched", True), ("strayed", True)]
    assert heard == [*expected, ("float32", True)]


def test_nothing_watched_is_nothing_found() -> None:
    watched = watch(5.0, share=0.0)
    for _ in range(50):
        watched()
    assert not watched.strayed
    assert watched.ne_cost_pct == 0.0


def test_answers_that_are_no_numbers_have_strayed() -> None:
    watched = watch(float("nan"))
    for _ in range(4):
        watched()
    assert watched.strayed
    assert torch.equal(watched().logit_CT, LOGITS)


@given(half_life=st.floats(100.0, 1e6))
def test_the_average_forgets(half_life: float) -> None:
    watched = watch(0.0, half_life=half_life, ne_cost_pct=1e9)
    watched.compact = answer(1.0)
    watched()
    first = watched.ne_cost_pct
    watched.compact = answer(0.0)
    watched()
    fade = 0.5 ** (100 / half_life)
    assert watched.ne_cost_pct == pytest.approx(first * fade / (1 + fade))


def test_the_same_seed_watches_the_same_requests() -> None:
    def seen(seed: int) -> list[float]:
        calls: list[float] = []
        watched = watch(0.001, calls, share=0.3, seed=seed)
        for _ in range(60):
            watched()
        return calls

    assert seen(1) == seen(1) != seen(2)


def test_a_compact_foundation_model_passes_its_watch_and_a_broken_one_does_not(world: World) -> None:
    chosen = compact(world.model, Precision(), world.sample, timer=never_float32)
    config = AccuracyWatch.Config(share=1.0, least=1)
    with torch.no_grad():
        watched = AccuracyWatch(config=config, compact=chosen, reference=world.model)
        for call in world.later:
            watched(*call)
        assert not watched.strayed
        assert 0 < watched.ne_cost_pct <= config.ne_cost_pct
        chosen.model.table.tensors()["rows"].random_(0, 255)
        broken = AccuracyWatch(config=config, compact=chosen, reference=world.model)
        broken(*world.later[0])
        assert broken.strayed
        assert torch.equal(broken(*world.later[0]).logit_CT, world.model(*world.later[0]).logit_CT)
