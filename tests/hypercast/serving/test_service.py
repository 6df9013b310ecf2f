"""The whole of it over real models and a real store: what is answered, from which rung, and what becomes of it."""

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypercast.errors import StoreError
from hypercast.registry import Registry
from hypercast.serving.deploy import FOLDER, JOURNAL, open_service
from hypercast.serving.features.question import Question
from hypercast.serving.logs.intake import Intake, trim
from hypercast.serving.models.foundation import FoundationScorer, Scored
from hypercast.store.online import OnlineStore
from tests.hypercast.serving.conftest import TRAINED, Played
from tests.hypercast.serving.memory import memory
from tests.hypercast.serving.wire import answer, ask, connect, request
from tests.hypercast.serving.world import (
    FIRST_ITEM,
    FIRST_USER,
    FRESH_SECONDS,
    TTL_SECONDS,
    World,
    configured,
    load,
    scores,
    serving,
    until,
)


@pytest.fixture(scope="module")
def live(played: Played, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """In mode live, with time enough for the foundation model. Tests ask for times of their own, ever later ones."""
    with serving(configured(played, tmp_path_factory.mktemp("live"))) as world:
        yield world


def rungs(told: Any) -> set[str]:
    return set(told["embeddings"]["rung"])


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Make the foundation model slow."""
    score = FoundationScorer.score

    def slowly(self: FoundationScorer, asked: Any) -> Scored:
        time.sleep(seconds)
        return score(self, asked)

    monkeypatch.setattr(FoundationScorer, "score", slowly)


def test_a_live_answer_is_what_the_models_say(live: World) -> None:
    asked = live.question(at=1)
    told = live.rank(at=1)
    bundle = live.service.swap.current
    question = Question(
        **{name: asked[name] for name in ("surface", "user_id", "time")},
        request_id=told["request_id"],
        context=dict.fromkeys(("hour", "store", "weekday")),
        item_ids=np.array(asked["item_ids"]),
        dense={name: np.array(values, np.float32) for name, values in asked["dense"].items()},
    )
    requests = live.service.state.requests([question])
    assert bundle.foundation is not None
    said = bundle.experts["surface_0"].score(requests, bundle.foundation.score(requests).features())
    np.testing.assert_array_equal(scores(told).astype(np.float32), said)
    assert len(np.unique(said[:, 0])) > 1  # of known items, which differ
    assert rungs(told) == {"LIVE"} and told["trace"]["foundation"] == "live"
    assert list(told["scores"]) == bundle.experts["surface_0"].tasks
    assert told["models"]["snapshot"] == told["embeddings"]["snapshot"] == bundle.foundation.snapshot.name
    assert told["models"]["expert"]["arm"] == "treated"


def test_the_order_of_items_is_the_askers(live: World) -> None:
    forwards = live.question(at=2)
    backwards = {
        **forwards,
        "item_ids": forwards["item_ids"][::-1],
        "dense": {name: values[::-1] for name, values in forwards["dense"].items()},
    }
    told, reversed_ = (ask(live.port, "POST", "/v1/rank", each)[1] for each in (forwards, backwards))
    np.testing.assert_allclose(scores(told), scores(reversed_)[::-1], atol=1e-6)


def test_the_next_page_finds_its_history_encoded_and_that_is_counted(live: World) -> None:
    def outcomes() -> dict[str, float]:
        return {name: live.value("user_cache_total", outcome=name) for name in ("hit", "extended", "miss")}

    page = {"user_id": FIRST_USER + 7, "at": 2.5}
    live.rank(**page)
    before, kept = outcomes(), live.value("user_cache_bytes")
    assert kept > 0
    live.rank(**page, item_ids=[FIRST_ITEM + offset for offset in (2, 4, 6, 8, 10, 12)])
    assert outcomes() == {**before, "hit": before["hit"] + 1}
    assert live.value("user_cache_bytes") == kept


def test_strangers_and_new_items_are_scored_as_cold(live: World) -> None:
    cold = live.rank(at=3, user_id=2**62, item_ids=[2**62 + number for number in range(6)])
    assert np.isfinite(scores(cold)).all()
    known = live.rank(at=3)
    assert not np.allclose(scores(cold), scores(known))


def test_an_engagement_changes_the_next_answer_and_only_its_users(live: World) -> None:
    mine, other = {"user_id": FIRST_USER + 5, "at": 20.0}, {"user_id": FIRST_USER + 6, "at": 20.0}
    before = live.rank(**mine), live.rank(**other)
    event = {"user_id": FIRST_USER + 5, "item_id": FIRST_ITEM + 5, "surface": "surface_0", "action": "purchase"}
    action = live.service._workspace.dataset.config.actions[0]
    events = [{**event, "action": action, "time": live.now + 10_000_000 + number} for number in range(5)]
    assert ask(live.port, "POST", "/v1/events", {"events": events}) == (200, {"taken": 5})
    after = live.rank(**mine), live.rank(**other)
    assert not np.allclose(scores(before[0]), scores(after[0]))
    later = {"events": [{**events[0], "time": live.now + 20_000_000}]}  # not before the question: law L1
    assert ask(live.port, "POST", "/v1/events", later)[0] == 200
    np.testing.assert_array_equal(scores(live.rank(**mine)), scores(after[0]))


@pytest.mark.parametrize(
    ("changes", "status", "where"),
    [
        ({"surface": "attic"}, 422, "surface"),
        ({"item_ids": list(range(2000))}, 413, "item_ids"),
        ({"user_id": True}, 422, "user_id"),
        ({"time": 1}, 422, "time"),
        ({"dense": {}}, 422, "dense.stores_promoting"),
    ],
)
def test_what_cannot_be_answered_is_told_why(live: World, changes: dict[str, Any], status: int, where: str) -> None:
    got, told = ask(live.port, "POST", "/v1/rank", {**live.question(at=30), **changes})
    assert (got, told["where"]) == (status, where) and told["allowed"] and told["example"]


def test_a_million_items_are_not_read(live: World) -> None:
    """The body alone has 7.5 MiB, its list of numbers some 38 MiB more."""
    body = json.dumps({**live.question(at=30), "item_ids": list(range(1_000_000))}).encode()
    sent = request("POST", "/v1/rank", body)

    def asked() -> None:
        with connect(live.port) as connection:
            with contextlib.suppress(ConnectionError):  # refused before it was read to its end
                connection.sendall(sent)
            assert answer(connection)[0] in (0, 413)

    asked()
    with memory() as used:
        for _ in range(10):
            asked()
    assert used.most < 6 << 20
    live.rank(at=30)


def test_paths_that_are_not_there(live: World) -> None:
    for method, path, status in (("GET", "/", 404), ("GET", "/v1/rank", 405), ("POST", "/docs", 404)):
        got, told = ask(live.port, method, path)
        assert got == status and "GET /healthz" in told["example"]


def test_health_models_and_metrics(live: World) -> None:
    assert ask(live.port, "GET", "/healthz")[1]["status"] == "ok"
    models = ask(live.port, "GET", "/v1/models")[1]
    assert models["version"] == live.service.swap.current.version and models["given"] == live.given
    live.rank(at=31)
    status, text = ask(live.port, "GET", "/metrics")
    assert status == 200 and b'hypercast_candidates_total{rung="LIVE"}' in text


def test_posts_at_the_same_time_are_all_on_disk(live: World) -> None:
    journal, together, posts = live.config.run / FOLDER / JOURNAL, threading.Barrier(8), 25
    action, before = live.service._workspace.dataset.config.actions[0], journal.read_bytes().count(b"\n")

    def post(user_id: int) -> int:
        with connect(live.port) as connection:
            together.wait()
            for number in range(posts):
                event = {"user_id": user_id, "item_id": 2**40, "action": action, "time": live.now + number}
                connection.sendall(request("POST", "/v1/events", json.dumps({"events": [event]}).encode()))
                assert answer(connection) == (200, {"taken": 1})
        return user_id

    with ThreadPoolExecutor(8) as threads:
        users = list(threads.map(post, range(2**40, 2**40 + 8)))
    lines = journal.read_text().splitlines()[before:]
    kept = sorted((row[0], row[2]) for line in lines for row in json.loads(line))
    assert kept == [(user, live.now + number) for user in users for number in range(posts)]


@pytest.mark.parametrize("wrong", [Intake.close, Intake.catch_up], ids=["end", "beginning"])
def test_a_part_that_fails_leaves_no_other_open(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    closed, close = list[OnlineStore](), OnlineStore.close

    def fails(intake: Intake) -> None:
        wrong(intake)
        raise MemoryError

    def closes(store: OnlineStore) -> None:
        closed.append(store)
        close(store)

    monkeypatch.setattr(Intake, wrong.__name__, fails)
    monkeypatch.setattr(OnlineStore, "close", closes)
    before = {thread.name for thread in threading.enumerate()}
    with pytest.raises(MemoryError):
        open_service(configured(played, tmp_path)).close()
    assert len(closed) == 1 and {thread.name for thread in threading.enumerate()} == before


def test_what_was_computed_live_is_found_next_time(played: Played, tmp_path: Path) -> None:
    config = configured(played, tmp_path, mode="live")
    with serving(config) as world:
        vectors = scores(world.rank(at=1))
        until(lambda: world.value("kept_total", outcome="put") >= 1)
        time.sleep(0.3)  # for a commit
    cached = config.model_copy(update={"serving": config.serving.model_copy(update={"mode": "cached"})})  # type: ignore[union-attr]
    with serving(cached) as world:
        assert rungs(world.rank(at=0.5)) == {"ZEROS"}  # computed later than this question
        told = world.rank(at=2)
        assert rungs(told) == {"FRESH"} and told["trace"]["foundation"] == "off"
        np.testing.assert_allclose(scores(told), vectors, atol=0.02)  # the question is a second later
        stale = world.rank(at=FRESH_SECONDS + 60)
        assert rungs(stale) == {"STALE"} and set(stale["embeddings"]["status"]) == {"STALE"}
        others = [FIRST_ITEM + number for number in range(30, 36)]
        user = world.rank(at=FRESH_SECONDS + 70, item_ids=others)
        assert rungs(user) == {"USER"} and set(user["embeddings"]["status"]) == {"MISS"}
        nobody = world.rank(at=FRESH_SECONDS + 80, user_id=FIRST_USER + 9)
        assert rungs(nobody) == {"ZEROS"} and nobody["models"]["expert"]["arm"] == "control"
        old = world.rank(at=TTL_SECONDS + 60)
        assert rungs(old) == {"ZEROS"} and set(old["embeddings"]["status"]) == {"EXPIRED"}
        for rung, rows in {"FRESH": 6, "STALE": 6, "USER": 6, "ZEROS": 18}.items():
            assert world.value("candidates_total", rung=rung) == rows


def test_a_slow_foundation_model_is_not_waited_for(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(played, tmp_path, live={"deadline_ms": 200.0})
    with serving(config) as world:
        until(lambda: rungs(world.rank(at=1)) == {"LIVE"})
        until(lambda: world.value("kept_total", outcome="put") >= 1)
        slow(monkeypatch, 1.0)
        late = world.rank(at=2)
        assert late["trace"]["foundation"] == "late" and rungs(late) == {"FRESH"}
        refused = world.rank(at=3)  # while it is still at it
        assert refused["trace"]["foundation"] == "refused" and rungs(refused) == {"FRESH"}
        monkeypatch.undo()
        until(lambda: rungs(world.rank(at=4)) == {"LIVE"})
        assert world.value("foundation_total", outcome="late") == 1


def test_what_the_foundation_model_did_not_get_to_is_computed_behind(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(configured(played, tmp_path, live={"deadline_ms": 200.0})) as world:
        until(lambda: rungs(world.rank(at=1)) == {"LIVE"})
        slow(monkeypatch, 1.0)
        world.rank(at=2)
        new = {"user_id": FIRST_USER + 7}
        refused = world.rank(at=3, **new)
        assert refused["trace"]["foundation"] == "refused" and rungs(refused) == {"ZEROS"}
        until(lambda: world.value("behind_total", outcome="computed") >= 1)
        monkeypatch.undo()
        until(lambda: rungs(world.rank(at=4, **new)) in ({"FRESH"}, {"LIVE"}))
        slow(monkeypatch, 1.0)
        assert rungs(world.rank(at=5, **new)) == {"FRESH"}


def test_a_foundation_model_that_fails_fails_no_answer(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: FoundationScorer, asked: Any) -> Scored:
        raise RuntimeError("broken")

    with serving(configured(played, tmp_path)) as world:
        monkeypatch.setattr(FoundationScorer, "score", fails)
        told = world.rank(at=1)
        assert told["trace"]["foundation"] == "failed" and rungs(told) == {"ZEROS"}
        assert told["models"]["expert"]["arm"] == "control"


def test_without_an_online_store_the_expert_answers_alone(played: Played, tmp_path: Path) -> None:
    config = configured(played, tmp_path, mode="expert").model_copy(update={"online": None})
    with serving(config) as world:
        told = world.rank(at=1)
        assert told["models"]["expert"]["arm"] == "control" and told["trace"]["foundation"] == "off"


def test_engagements_outlive_the_service(played: Played, tmp_path: Path) -> None:
    config = configured(played, tmp_path, mode="expert")
    asked = {"user_id": FIRST_USER + 5, "at": 20.0}
    with serving(config) as world:
        before = scores(world.rank(**asked))
        action = world.service._workspace.dataset.config.actions[0]
        events = [
            {
                **{"user_id": FIRST_USER + 5, "item_id": FIRST_ITEM + number, "surface": "surface_0"},
                **{"action": action, "time": world.now + number},
            }
            for number in range(5)
        ]
        assert ask(world.port, "POST", "/v1/events", {"events": events})[0] == 200
        after = scores(world.rank(**asked))
        assert not np.allclose(before, after)
    with (config.run / FOLDER / JOURNAL).open("ab") as journal:
        journal.write(b"[[1, 2")  # a process was killed while it wrote
    with serving(config) as world:
        np.testing.assert_array_equal(scores(world.rank(**asked)), after)


def test_two_processes_see_each_others_engagements(played: Played, tmp_path: Path) -> None:
    config = configured(played, tmp_path, mode="expert")
    asked = {"user_id": FIRST_USER + 5, "at": 20.0}
    with serving(config) as one, serving(config) as other:
        before = scores(other.rank(**asked))
        action = one.service._workspace.dataset.config.actions[0]
        event = {"user_id": FIRST_USER + 5, "item_id": FIRST_ITEM, "action": action, "time": one.now}
        assert ask(one.port, "POST", "/v1/events", {"events": [event]})[0] == 200
        until(lambda: not np.allclose(scores(other.rank(**asked)), before))
        journal = config.run / FOLDER / JOURNAL
        kept = journal.read_bytes()
        assert not trim(journal, since=2**62) and journal.read_bytes() == kept  # as a third one does that starts


def swap_under_load(world: World, *, swaps: int) -> None:
    """Let the channel name one snapshot, then the other, while questions are asked: none fails, none is mixed."""
    registry = Registry(world.config.run / "registry")
    names = [snapshot.name for snapshot in registry.list("FM")][-2:]
    question = world.question(at=1)

    def now_serves(name: str) -> Any:
        registry.move("FM", "latest", expected=registry.current("FM").name, to=name)
        assert world.service.swap.look()
        return name

    reference = {}
    for name in names:
        if registry.current("FM").name != name:
            now_serves(name)
        reference[name] = scores(ask(world.port, "POST", "/v1/rank", question)[1])
    assert not np.allclose(*reference.values(), atol=1e-4)  # or a mixture could not be told
    with load(world, questions=lambda number: question) as answers:
        for number in range(swaps):
            now_serves(names[number % 2])
            seen = len(answers)
            until(lambda seen=seen: len(answers) > seen + 3)  # type: ignore[misc]
    assert len(answers) > 3 * swaps and not [told for told in answers if isinstance(told, tuple)]
    for told in answers:
        models, embeddings = told["models"], told["embeddings"]
        assert models["version"].startswith(models["snapshot"] + "+")
        assert embeddings["snapshot"] == models["snapshot"]
        np.testing.assert_allclose(scores(told), reference[models["snapshot"]], atol=1e-5)
    assert {told["models"]["snapshot"] for told in answers} == set(names)


def test_newer_models_come_long_after_the_data_set_has_ended(played: Played, tmp_path: Path) -> None:
    with serving(configured(played, tmp_path, mode="expert")) as world:
        world.rank(at=60)
        event = {"user_id": FIRST_USER, "item_id": FIRST_ITEM, "surface": None, "time": world.now + 60_000_000}
        action = world.service._workspace.dataset.config.actions[0]
        assert ask(world.port, "POST", "/v1/events", {"events": [{**event, "action": action}]})[0] < 300
        exported = world.config.run / "experts" / "surface_0" / f"window={TRAINED:05d}"
        shutil.copytree(exported, exported.with_name(f"window={TRAINED + 1:05d}"))
        assert world.service.swap.look()
        assert world.rank(at=61)["models"]["expert"]["window"] == TRAINED + 1


def test_vectors_of_other_weights_are_not_read(played: Played, tmp_path: Path) -> None:
    """Another run of the lineage has fed the store under the snapshot's name."""
    one, moment = np.zeros(1, np.int64), np.array([played.snapshot.watermark + 5])
    other = replace(played.snapshot, manifest={**played.snapshot.manifest, "weights_digest": "0" * 64})
    with serving(configured(played, tmp_path, mode="cached")) as world:
        store = world.service._store
        assert store is not None
        vector = np.ones((1, other.dims["penultimate"]), np.float32)
        key = {"surface": one, "user_id": one + FIRST_USER, "item_id": one + FIRST_ITEM}
        if store.engine.layout(other.name) is None:
            store.put(snapshot=other, **key, vector=vector, computed_at=moment, history_end=moment)
            store.engine.commit(other.name)
        with pytest.raises(StoreError, match="weights"):
            world.service._warm(world.service.swap.current)


def test_snapshots_are_swapped_under_load(played: Played, tmp_path: Path) -> None:
    with serving(configured(played, tmp_path)) as world:
        swap_under_load(world, swaps=10)


@pytest.mark.slow
def test_snapshots_are_swapped_fifty_times(played: Played, tmp_path: Path) -> None:
    with serving(configured(played, tmp_path)) as world:
        swap_under_load(world, swaps=50)


def test_a_damaged_newer_snapshot_leaves_the_old_one_in_use(played: Played, tmp_path: Path) -> None:
    config = configured(played, tmp_path, refresh_seconds=0.05)
    with serving(config) as world:
        registry = world.service.swap._loader.registry  # type: ignore[attr-defined]
        used = registry.current("FM")
        other = registry.list("FM")[-2]
        shutil.rmtree(other.path.parents[1] / "objects")
        registry.move("FM", "latest", expected=used.name, to=other.name)
        until(lambda: world.value("swaps_total", outcome="failed") >= 2)
        assert world.rank(at=1)["models"]["snapshot"] == used.name
