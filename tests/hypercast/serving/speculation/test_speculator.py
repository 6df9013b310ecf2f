"""Speculation knows nothing of what it speculates on, computes what live scoring computes, and can be read back."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundation.publish import Publisher
from hypercast.errors import RegistryError
from hypercast.pins import Pin
from hypercast.serving.speculation.budget import Budget
from hypercast.serving.speculation.moment import requests_at
from hypercast.serving.speculation.predictor import RULES
from hypercast.serving.speculation.speculated import Speculated
from hypercast.serving.speculation.speculator import Speculator
from hypercast.store.ladder import Lookup, Rung
from hypercast.store.online import OnlineStore
from hypercast.store.status import MICROSECONDS, Status
from streaming.dataset import Window
from streaming.features import DAY

Make = Callable[..., Speculator]
PIN = Pin(expert="home", lineage="FM")
ARRAYS = [field.name for field in fields(Speculated) if field.name not in ("snapshot", "now")]


@pytest.fixture(scope="module")
def round_(speculator: Make, window: Window) -> Speculated:
    """What is speculated for the window at its start."""
    return run(speculator(), window)


def run(speculator: Speculator, window: Window, **changed: Any) -> Speculated:
    return speculator.run(window.start, horizon=window.end - window.start, **changed)


def same(one: Speculated, other: Speculated) -> bool:
    return one.snapshot.name == other.snapshot.name and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ARRAYS
    )


def keys_of(one: Speculated) -> list[tuple[int, int, int]]:
    return list(zip(one.user_id.tolist(), one.item_id.tolist(), one.surface.tolist(), strict=True))


# The laws: what was speculated for a window has seen nothing of it.


def other_request(row: dict[str, Any]) -> None:
    """Somebody else asks, elsewhere, for other things with other features, and it turns out otherwise."""
    row["user_id"] = 100 + (row["user_id"] - 96) % 16
    row["store"], row["hour"] = (row["store"] + 1) % 4, (row["hour"] + 7) % 24
    row["item_id"] = [1000 + (item - 1000 + 7) % 60 for item in row["item_id"]]
    row["surface"] = [1 - surface for surface in row["surface"]]
    row["dense"] = [[value + 1 for value in dense] for dense in row["dense"]]
    row["supervision"]["label_purchase"] = [1 - label for label in row["supervision"]["label_purchase"]]


def other_engagement(row: dict[str, Any]) -> None:
    row |= {"item_id": 1000 + (row["item_id"] - 1000 + 7) % 60, "action": 1 - row["action"], "surface": -1}


@pytest.mark.parametrize(("log", "change"), [("requests", other_request), ("engagements", other_engagement)])
def test_the_future_changes_nothing_and_the_past_does(
    log: str, change: Callable, speculator: Make, rewritten: Callable[..., Path], round_: Speculated, window: Window
) -> None:
    assert len(round_) > 50
    assert same(round_, run(speculator(rewritten(log, change, since=window.start)), window))
    assert not same(
        round_, run(speculator(rewritten(log, change, since=window.start - DAY, before=window.start)), window)
    )


def test_labels_are_never_read(
    speculator: Make, rewritten: Callable[..., Path], round_: Speculated, window: Window
) -> None:
    def flip(row: dict[str, Any]) -> None:
        row["supervision"]["label_purchase"] = [1 - label for label in row["supervision"]["label_purchase"]]

    assert same(round_, run(speculator(rewritten("requests", flip)), window))


def test_the_order_of_rounds_is_of_no_importance(speculator: Make, round_: Speculated, window: Window) -> None:
    made = speculator()
    run(made, window)
    made.run(window.start + 3 * DAY, horizon=DAY)
    assert same(round_, run(made, window))


def test_a_snapshot_that_had_seen_later_events_is_not_used(played, speculator: Make, round_: Speculated) -> None:
    assert round_.snapshot.name == "FM@0005" and round_.snapshot.watermark == round_.now
    earlier = speculator().run(round_.now - 1, horizon=7 * DAY)
    assert earlier.snapshot.name == "FM@0004" and earlier.snapshot.watermark <= earlier.now
    with pytest.raises(RegistryError):
        speculator().run(0, horizon=DAY)


# What is computed.


def test_vectors_are_those_of_live_scoring(played, speculator: Make, round_: Speculated, window: Window) -> None:
    """The publisher's model and scorer say the same of the same requests."""
    made = speculator()
    source = made.predictor.source
    pairs = source.at(window.start)
    wanted = set(keys_of(round_))
    keys = list(zip(pairs.user_id.tolist(), pairs.item_id.tolist(), pairs.surface.tolist(), strict=True))
    chosen = pairs.take(np.flatnonzero([key in wanted for key in keys]))
    requests = requests_at(window.start, chosen, source.asked(window.start), made.workspace)
    publisher = Publisher(
        config=played.config.publisher(),
        model=played.config.foundation.model,
        workspace=made.workspace,
        registry=played.registry,
        log=played.log,
    )
    publisher._load(played.snapshot)
    said = publisher.scorer.score(publisher.reader.batch(requests))
    by_key = dict(zip(keys_of(round_), round_.vector, strict=True))
    expected = [
        by_key[key]
        for key in zip(chosen.user_id.tolist(), chosen.item_id.tolist(), chosen.surface.tolist(), strict=True)
    ]
    np.testing.assert_allclose(np.stack(expected), said.penultimate_CR.numpy(), rtol=1e-4, atol=1e-5)
    assert np.ptp(round_.vector, axis=0).min() > 0


def test_a_smaller_budget_computes_a_part_of_it(speculator: Make, round_: Speculated, window: Window) -> None:
    less = run(speculator(), window, budget=Budget(pairs=20))
    assert keys_of(less) == keys_of(round_)[:20]
    part = round_.first(20)
    assert part.users.tolist() == less.users.tolist()
    np.testing.assert_allclose(part.vector, less.vector, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(part.encoding, less.encoding, rtol=1e-4, atol=1e-5)


def test_half_of_what_was_asked_for(speculator: Make, round_: Speculated, window: Window) -> None:
    workspace = speculator().workspace
    asked = np.mean([len(workspace.requests(window.index - back).item) for back in (1, 2)])
    assert len(round_) == int(asked / 2)
    assert len(set(keys_of(round_))) == len(round_)
    assert (np.diff(round_.chance) <= 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_ranks_the_same_pairs(rule: str, speculator: Make, round_: Speculated, window: Window) -> None:
    predictor = speculator().config.predictor.model_dump() | {"rule": rule}
    made = run(speculator(predictor=predictor), window)
    assert len(made) == len(round_)
    assert (keys_of(made) == keys_of(round_)) == (rule == "learned")


def test_without_a_past_nothing_is_computed(speculator: Make, played) -> None:
    first = speculator().workspace.dataset.windows[0]
    nothing = run(speculator(), first)
    assert len(nothing) == len(nothing.users) == 0 and nothing.vector.shape == (0, 8)
    store = OnlineStore.Config.model_validate({"engine": {"kind": "memory"}}).build()
    nothing.put(store)
    assert store.current("FM") is None


# The store.


def read(store: OnlineStore, one: Speculated, now: int, **changed: np.ndarray) -> Lookup:
    keys = {"user_id": one.user_id, "item_id": one.item_id, "surface": one.surface, **changed}
    return store.get(pin=PIN, now=now, width=8, **keys)


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_what_was_speculated_is_found_until_it_is_too_old(kind: str, round_: Speculated, tmp_path: Path) -> None:
    engine = {"kind": kind} | ({"path": str(tmp_path)} if kind == "local" else {})
    config = {"engine": engine, "fresh_for": 3600, "ttl": 7200}
    store = OnlineStore.Config.model_validate(config).build()
    round_.put(store)
    hour = 3600 * MICROSECONDS
    soon = read(store, round_, round_.now + 1)
    assert soon.counts()["FRESH"] == len(round_) and soon.snapshot == round_.snapshot.name
    np.testing.assert_allclose(soon.vector, round_.vector, rtol=1e-3, atol=1e-3)  # kept in half precision
    assert read(store, round_, round_.now + hour + 1).counts()["STALE"] == len(round_)
    late = read(store, round_, round_.now + 2 * hour + 1)
    assert late.counts()["EXPIRED"] == len(round_) and not late.present.any()
    assert not read(store, round_, round_.now - 1).present.any()

    unknown = np.full(len(round_), 10**6)
    missed = read(store, round_, round_.now + 1, item_id=unknown)
    assert missed.counts()["MISS"] == len(round_) and (missed.rung == Rung.USER).all()
    means, _ = round_.aggregates()
    expected = means[np.searchsorted(round_.users, round_.user_id)]
    np.testing.assert_allclose(missed.vector, expected, rtol=1e-3, atol=1e-3)
    assert (read(store, round_, round_.now + 1, user_id=unknown).rung == Rung.ZEROS).all()
    store.close()


def test_the_next_round_replaces_the_last(speculator: Make, round_: Speculated, window: Window) -> None:
    store = OnlineStore.Config.model_validate({"engine": {"kind": "memory"}, "fresh_for": 86400, "ttl": 86400}).build()
    round_.put(store)
    later = speculator().run(window.start + 2 * DAY, horizon=5 * DAY)
    later.put(store)
    found = read(store, later, later.now + 1)
    assert (found.status == Status.FRESH).all() and found.age.tolist() == [1] * len(later)
    both = set(keys_of(later)) & set(keys_of(round_))
    gone = [row for row, key in enumerate(keys_of(round_)) if key not in both]
    assert gone and (read(store, round_, later.now + 1).status[gone] == Status.EXPIRED).all()


def test_readers_of_a_newer_snapshot_stay_there(speculator: Make, round_: Speculated, window: Window) -> None:
    store = OnlineStore.Config.model_validate({"engine": {"kind": "memory"}}).build()
    round_.put(store)
    before = speculator().run(window.start - 7 * DAY, horizon=7 * DAY)
    assert before.snapshot.name < round_.snapshot.name and len(before)
    before.put(store)
    assert store.current("FM") == round_.snapshot.name
    pinned = Pin(expert="home", lineage="FM", version=before.snapshot.version)
    keys = {"user_id": before.user_id, "item_id": before.item_id, "surface": before.surface}
    assert store.get(pin=pinned, now=before.now + 1, width=8, **keys).counts()["FRESH"] == len(before)
