"""What is said live is what is published, and what experts said in the loop that trained them."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from foundation.encoding import Reused
from hypercast.pins import Pin
from hypercast.runtime.jobs import ExpertJob
from hypercast.serving.features.asked import Asked, merge
from hypercast.serving.features.question import Question
from hypercast.serving.features.state import FeatureState
from hypercast.serving.models.expert import ExpertScorer
from hypercast.serving.models.foundation import FoundationScorer
from hypercast.store.status import Freshness, Status
from streaming.importers.synthetic import Synthetic
from streaming.requests import Requests
from streaming.workspace import Workspace
from tests.hypercast.serving.conftest import SETTINGS, Played, play
from tests.hypercast.serving.replay import engagements_of, questions_of
from transfer import predictions
from transfer.predictions import Column

SURFACE = 1


Situation = tuple[Workspace, Requests, Asked]


def ask(played: Played) -> Situation:
    """The next window's requests of one surface, as stored and as asked."""
    workspace, window = played.workspace(), played.next_window
    stored = workspace.requests(window.index).on_surface(SURFACE)
    state = FeatureState.open(workspace, as_of=window.start)
    events = engagements_of(workspace, window.index)
    parts = []
    for row in range(len(stored)):
        one = stored.slice(row, row + 1)
        after = int(stored.time[row - 1]) if row else window.start - 1
        new = (events["time"] > after) & (events["time"] <= stored.time[row])
        state.observe({name: column[new] for name, column in events.items()})
        parts.append(state.requests(questions_of(workspace, one, given=state.given)))
    return workspace, stored, merge(parts)


def predict(played: Played, run: Path) -> dict[str, np.ndarray]:
    """Predictions of the next window by every arm's training loop, ``[C, T]`` by arm; ``run``: a copy to do it in."""
    shutil.copytree(played.run, run)
    config = played.config.model_copy(update={"run": run})
    workspace = played.workspace()
    surface = workspace.inputs.surfaces[SURFACE]
    job = ExpertJob(config, run, [surface])
    job.trainers[surface].learner.evaluate(played.next_window)
    table = predictions.read(run, surface=surface, window=played.next_window.index)
    return {
        arm: np.stack([table[Column(task.name, arm, 0).name].to_numpy() for task in workspace.plan.tasks], axis=1)
        for arm in config.expert.arms
    }


def foundation(played: Played, workspace: Workspace) -> FoundationScorer:
    return FoundationScorer(snapshot=played.snapshot, workspace=workspace, ages=played.config.log)


def expert(played: Played, workspace: Workspace, arm: str) -> ExpertScorer:
    surface = workspace.inputs.surfaces[SURFACE]
    return ExpertScorer(
        folder=played.run / "experts" / surface / f"window={played.trained:05d}" / arm,
        surface=surface,
        workspace=workspace,
        dims=played.snapshot.dims,
        as_of=played.next_window.start,
    )


@pytest.fixture(scope="module")
def asked(played: Played) -> Situation:
    return ask(played)


@pytest.fixture(scope="module")
def predicted(played: Played, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return predict(played, tmp_path_factory.mktemp("predicted") / "run")


def test_the_foundation_model_says_what_it_published(played: Played, asked: Situation) -> None:
    workspace, stored, requests = asked
    scored = foundation(played, workspace).score(requests)
    for name, vector in scored.vectors.items():
        read = played.log.read(
            window=played.next_window.index,
            pin=Pin(expert="test", lineage="FM"),
            request_id=stored.request_id[stored.owner],
            candidate_id=stored.candidate_id,
            time=stored.time[stored.owner],
            width=played.snapshot.dims[name],
            tasks=workspace.inputs.tasks,
            representation=name,
        )
        assert read.snapshot == scored.snapshot == played.snapshot.name
        # The batches have other sizes: float32 sums round otherwise, and then half precision seldom does.
        np.testing.assert_allclose(vector, read.vector, rtol=2e-3, atol=1e-5)
        assert (vector == read.vector).mean() > 0.99
        np.testing.assert_allclose(scored.logit_CT, read.teacher_logit, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(scored.status, read.status)
        np.testing.assert_array_equal(scored.age, read.age)


@pytest.mark.parametrize("arm", ["control", "control_matched", "tae", "tae_sequence", "logit_residual", "treated"])
def test_an_expert_says_what_it_predicted(
    played: Played, asked: Situation, arm: str, predicted: dict[str, np.ndarray]
) -> None:
    workspace, _, requests = asked
    teacher = foundation(played, workspace).score(requests)
    scorer = expert(played, workspace, arm)
    np.testing.assert_allclose(scorer.score(requests, teacher.features()), predicted[arm], rtol=2e-4, atol=1e-6)
    alone = [scorer.score(requests.take(np.array([row])), None) for row in range(3)]
    np.testing.assert_allclose(np.concatenate(alone), scorer.score(requests.slice(0, 3)), rtol=1e-5, atol=1e-7)


def test_a_candidate_is_scored_as_if_it_were_alone(played: Played, asked: Situation) -> None:
    workspace, stored, _ = asked
    state = FeatureState.open(workspace, as_of=played.next_window.start)
    rows = np.argsort(-np.diff(stored.offsets), kind="stable")[:1]
    question = questions_of(workspace, stored.take(rows), given=state.given)[0]
    teacher, treated = foundation(played, workspace), expert(played, workspace, "treated")

    def said(items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dense = {name: values[items] for name, values in question.dense.items()}
        part = replace(question, item_ids=question.item_ids[items], dense=dense, candidate_ids=None)
        requests = state.requests([part])
        scored = teacher.score(requests)
        return scored.logit_CT, treated.score(requests, scored.features())

    whole = said(np.arange(len(question.item_ids)))
    order = np.random.default_rng(0).permutation(len(question.item_ids))
    assert len(order) > 3
    for mine, theirs in zip(said(order), whole, strict=True):
        np.testing.assert_allclose(mine, theirs[order], rtol=1e-5, atol=1e-6)
    for place in range(len(order)):
        for mine, theirs in zip(said(np.array([place])), whole, strict=True):
            np.testing.assert_allclose(mine[0], theirs[place], rtol=1e-4, atol=1e-6)


def test_a_page_is_encoded_once_and_says_the_same(played: Played, asked: Situation) -> None:
    workspace = asked[0]
    window = played.next_window
    stored = workspace.requests(window.index).slice(0, 4)
    state = FeatureState.open(workspace, as_of=window.start)
    parts = [stored.on_surface(surface) for surface in range(len(workspace.inputs.surfaces))]
    questions = [each for part in parts for each in questions_of(workspace, part, given=state.given)]
    together = state.requests(questions)
    pages, place = together.pages()
    assert len(pages) == len(stored) < len(together)
    np.testing.assert_array_equal(pages.item[place], together.item)
    np.testing.assert_array_equal(pages.dense[place], together.dense)
    np.testing.assert_array_equal(pages.request_id[pages.owner][place], together.request_id[together.owner])
    scorer = foundation(played, workspace)
    whole = scorer.score(together)
    alone = [scorer.score(together.take(np.array([row]))) for row in range(len(together))]
    np.testing.assert_allclose(np.concatenate([each.logit_CT for each in alone]), whole.logit_CT, rtol=1e-5, atol=1e-6)


def test_the_next_page_encodes_nothing_and_says_the_same_to_the_bit(played: Played, asked: Situation) -> None:
    workspace, _, requests = asked
    first = requests.take(np.argsort([-len(past.time) for past in requests.past], kind="stable")[:1])
    items = replace(first, item=first.item[::-1].copy(), item_id=first.item_id[::-1].copy())
    pages = [first, replace(items, time=first.time + 1)]
    never = foundation(played, workspace)
    keeping = FoundationScorer(
        snapshot=played.snapshot, workspace=workspace, ages=played.config.log, keep_bytes=1 << 22
    )
    assert never.kept is None and keeping.kept is not None
    user = int(first.user_id[0])
    keeping.rehearse(first)
    assert not len(keeping.kept) and not keeping.keeps(user)
    for page, expected in zip(pages, (Reused(miss=1), Reused(hit=1)), strict=True):
        scored, anew = keeping.score(page), never.score(page)
        assert (scored.reused, anew.reused) == (expected, Reused())
        assert keeping.keeps(user) and not never.keeps(user)
        np.testing.assert_array_equal(scored.logit_CT, anew.logit_CT)
        for name, vector_CR in scored.vectors.items():
            np.testing.assert_array_equal(vector_CR, anew.vectors[name])


def test_a_snapshot_says_nothing_before_its_watermark_and_when_it_is_too_old(played: Played, asked: Situation) -> None:
    workspace, _, requests = asked
    watermark = played.snapshot.watermark
    two = requests.slice(0, 2)
    early = replace(two, time=np.array([watermark - 1, watermark]))
    scored = foundation(played, workspace).score(early)
    first = early.owner == 0
    assert (scored.status[first] == Status.MISS).all() and (scored.status[~first] == Status.FRESH).all()
    assert not scored.vectors["penultimate"][first].any() and not scored.logit_CT[first].any()
    assert scored.vectors["penultimate"][~first].any() and not scored.age.any()
    old = FoundationScorer(snapshot=played.snapshot, workspace=workspace, ages=Freshness(fresh_for=0, ttl=0))
    assert (old.score(two).status == Status.EXPIRED).all()
    assert not old.score(two).logit_CT.any()
    assert not old.score(two).features().present_C.any()


def test_a_request_without_candidates_is_scored_too(played: Played, asked: Situation) -> None:
    workspace, _, requests = asked
    none = replace(questions_of(workspace, asked[1].slice(0, 1), given=[])[0], item_ids=np.zeros(0, np.int64))
    state = FeatureState.open(workspace, as_of=played.next_window.start)
    empty = state.requests(
        [replace(none, dense={name: np.zeros(0, np.float32) for name in state.given}, candidate_ids=None)]
    )
    teacher, treated = foundation(played, workspace), expert(played, workspace, "treated")
    scored = teacher.score(empty)
    assert scored.logit_CT.shape == (0, 2)
    assert treated.score(empty, scored.features()).shape == (0, 2)
    between = merge([requests.slice(0, 1), empty, requests.slice(1, 2)])
    np.testing.assert_allclose(
        teacher.score(between).logit_CT, teacher.score(requests.slice(0, 2)).logit_CT, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("history", [0, 3])
def test_nobody_known_is_scored_all_the_same(played: Played, asked: Situation, history: int) -> None:
    workspace = asked[0]
    state = FeatureState.open(workspace, as_of=played.next_window.start)
    events = [(10**9, 5, 0, 0, second) for second in range(history)]
    user_id, item_id, surface, action, time = np.array(events, dtype=np.int64).reshape(-1, 5).T
    start = played.next_window.start
    state.observe({"user_id": user_id, "item_id": item_id, "surface": surface, "action": action, "time": start + time})
    question = Question(
        request_id=1,
        surface=workspace.inputs.surfaces[SURFACE],
        user_id=10**9,
        time=start + 10,
        context=dict.fromkeys(workspace.dataset.config.context),
        item_ids=np.array([10**12, 1000]),
        dense={name: np.zeros(2, np.float32) for name in state.given},
    )
    requests = state.requests([question])
    teacher = foundation(played, workspace).score(requests)
    for arm in ("control", "control_matched", "treated"):
        said = expert(played, workspace, arm).score(requests, teacher.features())
        assert ((said > 0) & (said < 1)).all()


@pytest.mark.slow
def test_windows_that_a_surface_asks_for_are_read_as_in_training(tmp_path: Path) -> None:
    dataset = Synthetic.Config(users=16, windows=5, candidates=6, surfaces=2).build(tmp_path / "data")
    file = dataset.path / "dataset.yaml"
    described = yaml.safe_load(file.read_text())
    described["tasks"][0] |= {"attribution_seconds": 4 * 86400.0, "delay_seconds": 4 * 86400.0}
    described["tasks"][1]["delay_seconds"] = 4 * 86400.0
    file.write_text(yaml.safe_dump(described))
    changes = {
        "labels": {"purchase": {"kind": "interpolation", "windows_days": [1.0], "tail": "curve"}},
        "asked_days": {"surface_1": {"purchase": 2.0}},
        "delay_groups": ["age"],
        "expert": {
            **SETTINGS["expert"],
            "arms": ["control", "treated", "user_embedding", "finetune"],
            "finetune_window": 2,
        },
    }
    played = play(Played(run=tmp_path / "run", dataset=dataset.path, trained=3, changes=changes))
    workspace, _, requests = ask(played)
    assert workspace.inputs.tasks != [task.name for task in workspace.plan.tasks]
    predicted = predict(played, tmp_path / "predicted")
    teacher = foundation(played, workspace).score(requests)
    for arm in played.config.expert.arms:
        said = expert(played, workspace, arm).score(requests, teacher.features())
        np.testing.assert_allclose(said, predicted[arm], rtol=2e-4, atol=1e-6)
