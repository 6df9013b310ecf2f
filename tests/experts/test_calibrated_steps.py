"""Calibration inside an expert: it hears what was said of labels once they are known, and changes nothing learned."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experts.calibration import PlattCalibration
from experts.model import ExpertModel
from experts.steps import SurfaceLearner
from hypercast import tensors
from hypercast.store.tae_log import TaeLog
from hypercast.training import checkpoint
from hypercast.training.loop import ContinualTrainer
from streaming.importers.synthetic import Synthetic
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer import predictions

MakeLearner = Callable[..., SurfaceLearner]
ARM = ("control", 0)


@pytest.fixture
def calibrated(small: ExpertModel.Config) -> ExpertModel.Config:
    return small.model_copy(update={"calibration": PlattCalibration.Config(prior=20.0)})


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Labels become known three days after the request: some of a window in the one after."""
    path = tmp_path_factory.mktemp("late") / "data"
    return Workspace(Synthetic.Config(label_delay_seconds=3 * 86400.0, windows=4).build(path))


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> TaeLog:
    return TaeLog.Config().build(tmp_path_factory.mktemp("nothing") / "log")


def trainer(made: SurfaceLearner) -> ContinualTrainer:
    return ContinualTrainer(config=ContinualTrainer.Config(), learner=made, checkpoints=made.run / "checkpoints")


def said(made: SurfaceLearner, window: int) -> torch.Tensor:
    """Logits of the control's predictions, ``[C, T]``."""
    table = predictions.read(made.run, surface="surface_1", window=window)
    columns = [table[f"p_{task}.control.seed0"].to_numpy() for task in made.workspace.inputs.tasks]
    return torch.logit(torch.from_numpy(np.stack(columns, axis=1)).double())


def heard(made: SurfaceLearner) -> PlattCalibration:
    calibration = made.members[ARM].model.calibration
    assert calibration is not None
    return calibration


def test_what_is_learned_is_the_same_and_what_is_said_is_calibrated(
    learner: MakeLearner, calibrated: ExpertModel.Config
) -> None:
    """As an expert without calibration, whose logits are calibrated afterwards by what its past windows said."""
    plain, made = learner("plain", arms=["control"]), learner("made", arms=["control"], seeds=[0], model=calibrated)
    by_hand = calibrated.calibration.build(tasks=2).eval()
    moved = []
    for window in plain.workspace.dataset.windows:
        for one in (plain, made):
            trainer(one).run_window(window)
        raw_CT = said(plain, window.index)
        torch.testing.assert_close(said(made, window.index), by_hand(raw_CT), rtol=1e-4, atol=1e-4)
        moved.append(not by_hand(raw_CT).equal(raw_CT))
        labels = plain.workspace.requests(window.index).on_surface(*plain.surfaces.values()).supervision
        known_CT = torch.from_numpy(labels.known(since=window.start, before=window.end))
        by_hand.observe(raw_CT, torch.from_numpy(labels.label) * known_CT, known_CT)
        by_hand.close()
        torch.testing.assert_close(heard(made).slope, by_hand.slope, rtol=1e-3, atol=1e-3)
    assert not moved[0] and any(moved)
    mine, theirs = made.members[ARM].model.state_dict(), plain.members[ARM].model.state_dict()
    assert tensors.digest({name: mine[name] for name in theirs}) == tensors.digest(theirs)


def test_labels_count_in_the_window_in_which_they_become_known(
    learner: MakeLearner, calibrated: ExpertModel.Config, late: Workspace, nothing: TaeLog
) -> None:
    """Law L2, and once each: of the window's own requests and of the one before."""
    made = learner(arms=["control"], seeds=[0], model=calibrated, on=late, log=nothing)
    came_later = 0
    for window in late.dataset.windows:
        made.evaluate(window)
        expected = np.zeros(2)
        for other in late.dataset.windows:
            labels = late.requests(other.index).on_surface(*made.surfaces.values()).supervision
            known = labels.known(since=window.start, before=window.end).sum(axis=0)
            expected += known
            came_later += int(known.sum()) if other.index < window.index else 0
        assert heard(made).pending[:, :, 0].sum(dim=1).tolist() == expected.tolist()
        made.finish(window)
        assert not heard(made).pending.any()
    assert came_later > 0


class Unheard(Workspace):
    """Labels that become known after ``UNTIL`` are others."""

    UNTIL = 0

    def requests(self, window: int) -> Requests:
        requests = super().requests(window)
        given = requests.supervision
        turned = np.where(given.known_time >= self.UNTIL, 1 - given.label, given.label)
        return replace(requests, supervision=replace(given, label=turned.astype(np.float32)))


def test_labels_that_become_known_later_calibrate_nothing_before(
    learner: MakeLearner, calibrated: ExpertModel.Config, late: Workspace, nothing: TaeLog
) -> None:
    *_, last = windows = late.dataset.windows[:3]
    other = Unheard(late.dataset)
    object.__setattr__(other, "UNTIL", last.start)
    runs = [
        learner(name, arms=["control"], seeds=[0], model=calibrated, on=on, log=nothing)
        for name, on in (("honest", late), ("other", other))
    ]
    for made in runs:
        for window in windows:
            trainer(made).run_window(window)
    for window in windows:
        assert said(runs[0], window.index).equal(said(runs[1], window.index))
    assert not heard(runs[0]).past.equal(heard(runs[1]).past)


def test_a_window_that_is_predicted_again_is_heard_once(learner: MakeLearner, calibrated: ExpertModel.Config) -> None:
    made, twin = (learner(name, arms=["control"], seeds=[0], model=calibrated) for name in ("made", "twin"))
    window = made.workspace.dataset.windows[1]
    made.evaluate(window)
    for one in (made, twin):
        one.evaluate(window)
        one.finish(window)
    assert heard(made).past.any()
    assert heard(made).past.equal(heard(twin).past)


def test_a_killed_run_goes_on_with_the_same_bits(
    learner: MakeLearner, calibrated: ExpertModel.Config, tmp_path: Path
) -> None:
    settings = {"arms": ["control", "c2al"], "model": calibrated, "seeds": [0]}
    straight, killed = learner("straight", **settings), learner("killed", **settings)
    windows = straight.workspace.dataset.windows[:4]
    for window in windows:
        trainer(straight).run_window(window)
    for window in windows[:2]:
        trainer(killed).run_window(window)
    resumed = learner("killed", **settings)
    for window in windows:
        trainer(resumed).run_window(window)
    mine, theirs = (checkpoint.pack(one.state_dict()) for one in (resumed, straight))
    assert mine[1] == theirs[1] and tensors.digest(mine[0]) == tensors.digest(theirs[0])
    assert said(resumed, windows[3].index).equal(said(straight, windows[3].index))


def test_an_exported_expert_is_calibrated(learner: MakeLearner, calibrated: ExpertModel.Config, tmp_path: Path) -> None:
    made = learner(arms=["control"], seeds=[0], model=calibrated)
    trainer(made).run_window(made.workspace.dataset.windows[1])
    made.export(tmp_path / "export")
    found = tensors.load(tmp_path / "export" / "control" / "expert.safetensors")
    assert found["model.calibration.slope"].equal(heard(made).slope)
    assert not heard(made).slope.equal(torch.ones(2, dtype=torch.float64))
