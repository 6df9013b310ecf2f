"""Cohorts inside an expert: until some are found the arm is the control, they cost no serving, and rows are theirs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from experts.cohort import CohortTasks
from experts.model import ExpertModel
from experts.steps import SurfaceLearner
from hypercast import tensors
from hypercast.training import checkpoint
from hypercast.training.loop import ContinualTrainer
from streaming import config as configuration
from streaming.catalogue import encode
from streaming.errors import LeakageError
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer import cohort, predictions

MakeLearner = Callable[..., SurfaceLearner]
EASILY = CohortTasks.Config(windows=2, least_rows=50, least_positives=3)
"""So that the tiny data set has cohorts after two windows."""
FOUND = 2
"""Windows before there are any."""


class Planted(Workspace):
    """One of two brands is bought ten times as often as the other."""

    def requests(self, window: int) -> Requests:
        requests = super().requests(window)
        given, brand = requests.supervision, self.items.features.index("brand")
        often = self.items.code[requests.item, brand] == self.items.code[0, brand]
        label = given.label.copy()
        label[:, 0] = np.random.default_rng([0, window]).random(len(label)) < np.where(often, 0.5, 0.05)
        return replace(requests, supervision=replace(given, label=label))


@pytest.fixture
def planted(learner: MakeLearner, workspace: Workspace) -> MakeLearner:
    """Learners of the planted world, with cohorts that are found after two windows."""
    return lambda run="run", **settings: learner(
        run,
        **{"on": Planted(workspace.dataset), "arms": ["control", "c2al"], "seeds": [0], "cohorts": EASILY, **settings},
    )


def trainer(made: SurfaceLearner) -> ContinualTrainer:
    return ContinualTrainer(config=ContinualTrainer.Config(), learner=made, checkpoints=made.run / "checkpoints")


def run(made: SurfaceLearner, windows: int) -> SurfaceLearner:
    for window in made.workspace.dataset.windows[:windows]:
        trainer(made).run_window(window)
    return made


def weights(made: SurfaceLearner, arm: str) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in made.members[arm, 0].model.serving_state().items()}


def test_the_arm_is_the_control_until_cohorts_are_found(planted: MakeLearner) -> None:
    made = run(planted(), FOUND)
    assert tensors.digest(weights(made, "c2al")) == tensors.digest(weights(made, "control"))
    assert len(made.cohorts.tasks.pairs) > 0
    run(made, FOUND + 1)
    tables = [predictions.read(made.run, surface="surface_1", window=window) for window in (1, 2, 3)]
    assert all(table["p_purchase.c2al.seed0"].equals(table["p_purchase.control.seed0"]) for table in tables)
    assert not weights(made, "c2al")["backbone.layers.0.weight"].equal(
        weights(made, "control")["backbone.layers.0.weight"]
    )


def test_no_other_arm_is_disturbed(planted: MakeLearner) -> None:
    alone = run(planted("alone", arms=["control"]), FOUND + 2)
    beside = run(planted("beside", arms=["c2al", "control"]), FOUND + 2)
    assert tensors.digest(weights(alone, "control")) == tensors.digest(weights(beside, "control"))


def test_serving_costs_nothing_more(planted: MakeLearner, tmp_path: Path) -> None:
    made = run(planted(arms=["control", "c2al", "aux_head"]), FOUND + 1)
    flops = made.flops(made.workspace.dataset.windows[0])
    assert flops["c2al"] == flops["aux_head"] == flops["control"] > 0
    made.export(tmp_path / "export")
    names = {arm: set(tensors.load(tmp_path / "export" / arm / "expert.safetensors")) for arm in flops}
    assert names["c2al"] == names["aux_head"] == names["control"]
    config = configuration.load(tmp_path / "export" / "c2al" / "expert.yaml", ExpertModel.Config)
    assert config.cohorts is None
    served = config.build(inputs=made.workspace.inputs, vocabulary=made.vocabulary, embedding=6, seed=9)
    served.load_state_dict(weights(made, "c2al"))


def test_training_has_heads_of_its_own(planted: MakeLearner) -> None:
    made = run(planted(), FOUND)
    before = made.members["c2al", 0].model.cohort_heads.weight.clone()
    run(made, FOUND + 1)
    moved = (made.members["c2al", 0].model.cohort_heads.weight != before).any(dim=1)
    found = 2 * len(made.cohorts.tasks.pairs)
    assert moved[:found].all() and not moved[found:].any()


class Scrambled(Planted):
    """The same, but labels of the third window are noise."""

    def requests(self, window: int) -> Requests:
        requests = super().requests(window)
        given = requests.supervision
        noise = np.random.default_rng(0).integers(0, 2, given.label.shape).astype(np.float32)
        return replace(requests, supervision=replace(given, label=noise)) if window == FOUND + 1 else requests


def test_labels_of_a_window_choose_no_cohort_for_it(planted: MakeLearner) -> None:
    """Laws L4 and L5: cohorts come from windows before, and change nothing that is said of the one they are used in."""
    honest = run(planted("honest"), FOUND + 1)
    other = run(planted("other", on=Scrambled(honest.workspace.dataset)), FOUND + 1)
    assert other.cohorts.tasks.pairs == honest.cohorts.tasks.pairs != []
    tables = [predictions.read(made.run, surface="surface_1", window=FOUND + 1) for made in (honest, other)]
    assert tables[0]["p_purchase.c2al.seed0"].equals(tables[1]["p_purchase.c2al.seed0"])
    later = EASILY.model_copy(update={"windows": FOUND + 1})
    pairs = [
        run(planted(name, cohorts=later, on=made.workspace), FOUND + 1).cohorts.tasks.pairs
        for name, made in (("third", honest), ("scrambled", other))
    ]
    assert pairs[0] != pairs[1]  # where the third window may count, it does


def test_a_window_is_not_trained_on_again_once_it_is_closed(planted: MakeLearner) -> None:
    made = run(planted(), 1)
    with pytest.raises(LeakageError, match="cohorts: window 1"):
        next(made.batches(made.workspace.dataset.windows[0]))


def test_rows_of_each_cohort_are_kept_beside_the_predictions(planted: MakeLearner) -> None:
    made = run(planted(), FOUND + 1)
    assert not cohort.path_of(made.run, "surface_1", FOUND).exists()
    kept = pq.read_table(cohort.path_of(made.run, "surface_1", FOUND + 1))
    table = predictions.read(made.run, surface="surface_1", window=FOUND + 1)
    requests = made.workspace.requests(FOUND + 1).on_surface(*made.surfaces.values())
    assert kept.num_rows == table.num_rows == len(requests.item)
    assert kept.column_names == list(made.cohorts.named())
    for name in kept.column_names:
        attribute, value = name.split("=")
        kind, column = attribute.split(".")
        catalogue, row = {
            "item": (made.workspace.items, requests.item),
            "user": (made.workspace.users, requests.user[requests.owner]),
        }[kind]
        code = catalogue.code[row, catalogue.features.index(column)]
        assert kept[name].to_pylist() == (code == encode(pa.array([value]))).tolist()
        assert 0 < sum(kept[name].to_pylist()) < kept.num_rows


def test_the_state_names_the_same_cohorts(planted: MakeLearner) -> None:
    made, again = run(planted("one"), FOUND), planted("two")
    again.load_state_dict(checkpoint.unpack(*checkpoint.pack(made.state_dict())))
    assert again.cohorts.named() == made.cohorts.named() != {}
