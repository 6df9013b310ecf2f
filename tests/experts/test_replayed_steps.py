"""Arms that train on earlier windows again and read label rates: resumed with the same bits, blind to the future."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from experts.steps import SurfaceLearner
from hypercast import tensors
from hypercast.store.tae_log import TaeLog
from hypercast.training import checkpoint
from hypercast.training.loop import ContinualTrainer
from hypercast.training.replay import Replay
from streaming.dataset import Window
from streaming.labels.rate_columns import LabelRateColumns
from streaming.workspace import Workspace
from transfer import predictions

MakeLearner = Callable[..., SurfaceLearner]
BOTH: dict[str, Any] = {
    "arms": ["control", "tae"],
    "replay": Replay.Config(windows=2),
    "label_rates": LabelRateColumns.Config(),
}


@pytest.fixture
def windows(workspace: Workspace) -> list[Window]:
    """Those that the log covers."""
    return workspace.dataset.windows[:3]


def trainer(made: SurfaceLearner) -> ContinualTrainer:
    return ContinualTrainer(config=ContinualTrainer.Config(), learner=made, checkpoints=made.run / "checkpoints")


def packed(made: SurfaceLearner) -> tuple[str, object]:
    found, skeleton = checkpoint.pack(made.state_dict())
    return tensors.digest(found), skeleton


def said(made: SurfaceLearner, window: Window) -> pa.Table:
    return predictions.read(made.run, surface="surface_1", window=window.index)


def played(made: SurfaceLearner, windows: list[Window]) -> SurfaceLearner:
    for window in windows:
        trainer(made).run_window(window)
    return made


def test_a_resumed_learner_goes_on_with_the_same_bits(learner: MakeLearner, windows: list[Window]) -> None:
    straight = learner("straight", **BOTH)
    run = trainer(straight)
    metrics = [run.run_window(window) for window in windows]
    killed = played(learner("killed", **BOTH), windows[:2])
    killed.evaluate(windows[2])
    killed.step(next(iter(killed.batches(windows[2]))))  # and here it dies
    resumed = learner("killed", **BOTH)
    again = trainer(resumed)
    assert resumed.replay.trained == [window.index for window in windows[:2]]
    assert [again.run_window(window) for window in windows] == metrics
    assert packed(resumed) == packed(straight)
    assert resumed.replay.trained == [window.index for window in windows]
    for window in windows:
        assert said(resumed, window).equals(said(straight, window))


def test_what_is_predicted_is_the_window_alone(learner: MakeLearner, windows: list[Window]) -> None:
    """Replay changes what is learned, from the second window on, and so what is said of the third."""
    arms = ["control", "tae"]
    plain = played(learner("plain", arms=arms), windows)
    made = played(learner("made", arms=arms, replay=BOTH["replay"]), windows)
    for window, same in zip(windows, (True, True, False), strict=True):
        requests = made.workspace.requests(window.index).on_surface(*made.surfaces.values())
        assert said(made, window)["request_id"].to_pylist() == requests.request_id[requests.owner].tolist()
        assert said(made, window).equals(said(plain, window)) == same
    assert made.flops(windows[2]) == plain.flops(windows[2])


def test_every_arm_reads_label_rates(learner: MakeLearner, windows: list[Window]) -> None:
    arms = ["control", "tae"]
    plain, made = (
        learner(name, arms=arms, label_rates=rates)
        for name, rates in (("plain", None), ("made", LabelRateColumns.Config()))
    )
    for window in windows[:2]:
        for batch in made.batches(window):
            made.step(batch)
    names = made.workspace.inputs.dense
    stored = len(plain.workspace.inputs.dense)
    assert names[:stored] == plain.workspace.inputs.dense
    assert "label_rate/purchase/user_item" in names[stored:]
    batch = next(iter(made.batches(windows[2])))
    without = batch.requests.dense_CF.clone()
    without[:, stored:] = 0
    blind = replace(batch, requests=replace(batch.requests, dense_CF=without))
    assert batch.requests.dense_CF.shape[1] == len(names)
    for member in made.members.values():
        member.model.eval()
        mine, theirs = (member.model(*each.read_by(member.model)).logit_CT for each in (batch, blind))
        assert not mine.equal(theirs)
    assert all(made.flops(windows[2])[arm] > plain.flops(windows[2])[arm] for arm in arms)


def test_a_learner_without_both_is_as_it_was(learner: MakeLearner, windows: list[Window], workspace: Workspace) -> None:
    plain = played(learner("plain", arms=["control"]), windows)
    rated = workspace.with_label_rates(LabelRateColumns.Config())
    asked = {"replay": Replay.Config(windows=0, reach=1), "label_rates": None}
    other = played(learner("other", arms=["control"], on=rated, **asked), windows)
    assert packed(other) == packed(plain)
    assert all(said(other, window).equals(said(plain, window)) for window in windows)


def test_labels_change_nothing_before_they_are_known(
    learner: MakeLearner, windows: list[Window], other_outcomes: Workspace, tmp_path: Path
) -> None:
    """Law L2: other outcomes of a window change what is said of the next one, and of none before."""
    nothing = TaeLog.Config().build(tmp_path / "nothing")
    asked = {**BOTH, "arms": ["control"], "log": nothing}
    honest, other = learner("honest", **asked), learner("other", on=other_outcomes, **asked)
    for window, same in zip(windows, (True, True, False), strict=True):
        for made in (honest, other):
            trainer(made).run_window(window)
        name = "p_purchase.control.seed0"
        assert said(honest, window)[name].equals(said(other, window)[name]) == same
