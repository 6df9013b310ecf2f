"""Which rung a question comes to, by what its expert reads and what there is."""

import asyncio
import contextlib
import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from experts.fusion import TeacherFeatures
from hypercast.serving.config import ServingConfig
from hypercast.serving.features.question import Question
from hypercast.serving.lanes import ranker as ranking
from hypercast.serving.lanes.ranker import Ranker
from hypercast.serving.lanes.ranking import Answer
from hypercast.serving.metrics import Metrics
from hypercast.store.ladder import Lookup, Rung
from hypercast.store.status import Status

DIMS = {"penultimate": 2, "user": 3}
C = 4


class Expert:
    """Remembers what it was given."""

    def __init__(self, arm: str, *, representation: str | None = None, reads_logits: bool = False) -> None:
        self.arm, self.representation, self.reads_logits = arm, representation, reads_logits
        self.tasks, self.told = ["click"], list[TeacherFeatures | None]()

    def score(self, asked: Any, teacher: TeacherFeatures | None) -> np.ndarray:
        self.told.append(teacher)
        return np.zeros((C, 1), np.float32)


class Late:
    """A foundation model that never answers in time."""

    snapshot = SimpleNamespace(lineage="FM", version=1, dims=DIMS, tasks=["click"])

    def keeps(self, user_id: int) -> bool:
        return False

    def logits(self, vector_CR: np.ndarray) -> np.ndarray:
        return np.full((len(vector_CR), 1), 7, np.float32)

    def score(self, asked: Any) -> Any:
        raise TimeoutError


class Store:
    """Has a vector of ones for everything."""

    def __init__(self, representation: str) -> None:
        self.config, self.asked = SimpleNamespace(representation=representation), 0

    def get(self, *, width: int, item_id: np.ndarray, **key: Any) -> Lookup:
        self.asked += 1
        return Lookup(
            vector=np.ones((len(item_id), width), np.float32),
            status=np.full(len(item_id), Status.FRESH, np.uint8),
            rung=np.full(len(item_id), Rung.FRESH, np.uint8),
            age=np.zeros(len(item_id), np.int64),
            snapshot="FM@0001",
        )


def asked_of(expert: Expert, control: Expert, store: Store, monkeypatch: pytest.MonkeyPatch) -> Answer:
    """The answer of a service in mode live whose foundation model is late."""
    monkeypatch.setattr(ranking, "merge", lambda parts: parts[0])
    bundle = SimpleNamespace(
        experts={"front": expert}, fallback={"front": control}, watermark=None, foundation_of=lambda surface: Late()
    )
    made = Ranker(
        config=ServingConfig.model_validate({"live": {"deadline_ms": 5000, "behind": 0}}),
        features=cast(Any, SimpleNamespace(requests=lambda questions: SimpleNamespace(slice=None))),
        surfaces=["front"],
        tasks=1,
        current=lambda: cast(Any, bundle),
        store=cast(Any, store),
        keeper=None,
        metrics=Metrics(),
    )
    question = Question(request_id=1, surface="front", user_id=2, time=3, context={}, item_ids=np.arange(C), dense={})
    with contextlib.closing(made):
        return asyncio.run(made.rank(question, arrived=time.monotonic()))


@pytest.mark.parametrize(
    ("expert", "kept"),
    [
        (Expert("tae", representation="penultimate"), "penultimate"),
        (Expert("tae", representation="user"), "user"),
        (Expert("treated", representation="penultimate", reads_logits=True), "penultimate"),
        (Expert("logit_residual", reads_logits=True), "penultimate"),
    ],
)
def test_an_expert_is_given_what_the_store_keeps_of_what_it_reads(
    expert: Expert, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = asked_of(expert, Expert("control"), Store(kept), monkeypatch)
    assert answer.expert is cast(Any, expert) and (answer.given.rung_C == Rung.FRESH).all()
    (teacher,) = expert.told
    assert teacher is not None and teacher.present_C.all()
    if expert.representation is not None:
        assert (teacher.vectors[expert.representation].vector_CR == 1).all()
    if expert.reads_logits:
        assert (teacher.logit_CT == 7).all()


@pytest.mark.parametrize(
    ("expert", "kept"),
    [
        (Expert("tae", representation="user"), "penultimate"),
        (Expert("tae", representation="penultimate"), "user"),
        (Expert("treated", representation="user", reads_logits=True), "user"),
        (Expert("logit_residual", reads_logits=True), "user"),
    ],
)
def test_the_control_answers_for_one_that_reads_what_the_store_has_not(
    expert: Expert, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros that are marked as vectors would be taken for what the foundation model says."""
    control, store = Expert("control"), Store(kept)
    answer = asked_of(expert, control, store, monkeypatch)
    assert answer.expert is cast(Any, control) and (answer.given.rung_C == Rung.ZEROS).all()
    assert not expert.told and control.told == [None] and store.asked == 0
