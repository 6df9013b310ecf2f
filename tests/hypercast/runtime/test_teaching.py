"""What a run says that it can teach, it can; whatever an expert reads was published as of the window."""

from collections.abc import Callable
from pathlib import Path

import pytest

from experts import arms
from experts.past import PastEmbeddings
from experts.steps import SurfaceLearner
from experts.teacher import TeacherReader, as_late_as
from foundation.hstu.layer import HSTUStack
from foundation.hstu.vocabulary import BatchVocabulary
from foundation.model import FoundationModel
from foundation.publish import REPRESENTATIONS, Publisher
from hypercast.errors import RegistryError
from hypercast.pins import Pin
from hypercast.registry import Registry
from hypercast.runtime.teaching import Teaching
from hypercast.store.tae_log import TaeLog
from streaming.dataset import Dataset
from streaming.workspace import Workspace
from transfer.gain import CONTROL

MODES = [mode for mode in arms.MODES if mode != CONTROL]
WIDTHS = {"penultimate": 6, "past": 6, "sequence": 8, "user": 8}
MODEL = FoundationModel.Config(
    width=8, representation=6, tower=12, history=10,
    stack=HSTUStack.Config(layers=1), vocabulary=BatchVocabulary.Config(default=64),
)  # fmt: skip
MakePublisher = Callable[..., Publisher]


@pytest.fixture(scope="module")
def workspace(small_dataset: Dataset) -> Workspace:
    return Workspace(small_dataset)


@pytest.fixture
def publisher(workspace: Workspace, tmp_path: Path) -> MakePublisher:
    def make(*representations: str, keep: int = 9) -> Publisher:
        return Publisher(
            config=Publisher.Config(representations=["penultimate", *representations], keep=keep),  # type: ignore[list-item]
            model=MODEL,
            workspace=workspace,
            registry=Registry(tmp_path / "registry"),
            log=TaeLog.Config().build(tmp_path / "log"),
        )

    return make


def release(made: Publisher, *, seed: int, watermark: int) -> None:
    listed = made.registry.list("FM")
    made.released = listed[-1].name if listed else None
    made.release(MODEL.build(inputs=made.workspace.inputs, seed=seed), watermark=watermark, metrics={})


def teaching(made: Publisher, mode: str, *, delay: int = 0, later: int = 0, version: int | None = None) -> Teaching:
    learner = SurfaceLearner.Config(
        arms=[CONTROL, mode],  # type: ignore[list-item]
        teacher_delay_windows=delay,
        label_delay_windows=later,
        finetune_window=1,
    )
    pin = Pin(expert="new", lineage="FM", version=version)
    return Teaching.of(registry=made.registry, log=made.log, pin=pin, workspace=made.workspace, learner=learner)


READING = ("kd", "tae", "tae_history", "user_embedding", "tae_sequence", "finetune")
"""One mode of each thing that is read."""


@pytest.mark.parametrize("mode", READING)
@pytest.mark.parametrize(("delay", "later"), [(0, 0), (1, 1)])
def test_once_what_is_missing_is_published_everything_can_be_read(
    mode: str, delay: int, later: int, publisher: MakePublisher, workspace: Workspace
) -> None:
    """Snapshots of all windows are there: the first declared penultimate only, and has published half of them."""
    windows = workspace.dataset.windows
    for seed, window in enumerate(windows):
        made = publisher() if seed == 0 else publisher("sequence", "user", "tower_input")
        release(made, seed=seed, watermark=window.start)
        if seed % 2 == 0:
            made.publish(window, made.registry.get("FM@0001"))
    plan = teaching(made, mode, delay=delay, later=later)
    number, _ = plan.longest(4)
    assert number >= 1
    chosen = windows[-number:]
    for window, snapshot in plan.missing(chosen):
        assert snapshot.watermark <= window.start  # law L3
        made.publish(window, snapshot)
    after = teaching(made, mode, delay=delay, later=later)
    assert after.missing(chosen) == []
    names = [name for name in plan.learner.representations() if name in WIDTHS] or ["penultimate"]
    reader = TeacherReader(
        log=made.log, pin=plan.pin, workspace=workspace, widths={name: WIDTHS[name] for name in names},
        past=PastEmbeddings.Config(), delay=delay, label_delay=plan.learner.delays[-1],
    )  # fmt: skip
    for window in chosen:
        requests = workspace.requests(window.index)
        told = reader.read(window.index, requests)
        assert reader.labels(window.index, requests, told.features).present_C.all()
        assert told.features.present_C.all()
    with_all = mode not in ("user_embedding", "tae_sequence", "finetune")
    # The first window can be scored by the first snapshot only; of the others one is as old as asked for, or not.
    assert number == (4 if with_all else 3 - delay)


def test_what_was_never_declared_cannot_be_published(publisher: MakePublisher, workspace: Workspace) -> None:
    made = publisher()
    for seed, window in enumerate(workspace.dataset.windows):
        release(made, seed=seed, watermark=window.start)
        made.publish(window)
    served = {mode: teaching(made, mode).longest(4)[0] for mode in MODES}
    lacking = ("user_embedding", "tae_sequence", "finetune")
    assert served == {mode: 0 if mode in lacking else 4 for mode in MODES}
    assert teaching(made, "user_embedding").modes() == [mode for mode in MODES if served[mode]]


def test_a_tower_that_is_gone_shortens_the_replay(publisher: MakePublisher, workspace: Workspace) -> None:
    made = publisher("tower_input", keep=2)
    for seed, window in enumerate(workspace.dataset.windows):
        release(made, seed=seed, watermark=window.start)
        made.publish(window)
    number, why = teaching(made, "finetune").longest(4)
    assert number == 2 and "takes over the tower as of window 2" in why and "the registry has FM@0003" in why
    assert teaching(made, "finetune").missing(workspace.dataset.windows, begun=True) == []
    assert teaching(made, "finetune", version=4).longest(4)[0] == 1
    assert teaching(made, "tae").longest(4)[0] == 4


def test_a_delay_that_the_log_does_not_serve_is_published_or_refused(
    publisher: MakePublisher, workspace: Workspace
) -> None:
    made, windows = publisher(keep=3), workspace.dataset.windows
    for seed, window in enumerate(windows):
        release(made, seed=seed, watermark=window.start)
        made.publish(window)
    found = teaching(made, "kd", later=1).missing(windows[-2:])
    assert [(window.index, snapshot.name) for window, snapshot in found] == [(3, "FM@0002"), (4, "FM@0003")]
    assert teaching(made, "tae", later=1).missing(windows) == []  # it distils nothing
    with pytest.raises(
        RegistryError, match=r"window 2 has no TAEs by FM that are 1 windows late.*the registry has FM@0"
    ):
        teaching(made, "kd", later=1).missing(windows[-3:])
    for window, snapshot in found:
        assert snapshot.watermark <= as_late_as(workspace.dataset, window.index, delay=1)


def test_before_the_run_has_begun_its_settings_say_what_there_will_be(publisher: MakePublisher) -> None:
    plan = teaching(publisher(), "user_embedding")
    assert plan.check(mode="user_embedding", declared=REPRESENTATIONS, example="create") == 12
    with pytest.raises(
        RegistryError, match=r"FM will publish penultimate only\. Modes.*representations: \[penultimate, u"
    ):
        plan.check(mode="user_embedding", declared=["penultimate"], example="create")
