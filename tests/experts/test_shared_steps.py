"""An expert that several surfaces share: it learns from all their candidates and is judged on each surface."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from experts.model import ExpertModel
from experts.predicted import Predicted
from experts.steps import SurfaceLearner
from hypercast import tensors
from hypercast.store.tae_log import TaeLog
from hypercast.training import checkpoint
from hypercast.training.loop import ContinualTrainer
from hypercast.training.replay import Replay
from streaming.dataset import Window
from streaming.labels.rate_columns import LabelRateColumns
from streaming.workspace import Workspace
from transfer import cohort, predictions
from transfer.predictions import Column

MakeLearner = Callable[..., SurfaceLearner]
BOTH = ("surface_0", "surface_1")
ARMS = ["control", "treated"]
RATED: dict[str, Any] = {"arms": ARMS, "replay": Replay.Config(windows=1), "label_rates": LabelRateColumns.Config()}


@pytest.fixture
def windows(workspace: Workspace) -> list[Window]:
    """Those that the log covers."""
    return workspace.dataset.windows[:3]


def played(made: SurfaceLearner, windows: Iterable[Window]) -> SurfaceLearner:
    trainer = ContinualTrainer(config=ContinualTrainer.Config(), learner=made, checkpoints=made.run / "checkpoints")
    for window in windows:
        trainer.run_window(window)
    return made


def said(made: SurfaceLearner, surface: str, window: Window) -> pa.Table:
    return predictions.read(made.run, surface=surface, window=window.index)


def without_predictions(table: pa.Table) -> pa.Table:
    return table.drop_columns([name for name in table.column_names if Column.parse(name)])


def test_each_surface_has_the_rows_that_an_expert_of_its_own_would_predict(
    learner: MakeLearner, windows: list[Window]
) -> None:
    shared = played(learner("shared", surfaces=BOTH, arms=ARMS), windows)
    for surface in BOTH:
        alone = played(learner(surface, surfaces=[surface], arms=ARMS), windows)
        for window in windows:
            mine, its = said(shared, surface, window), said(alone, surface, window)
            assert without_predictions(mine).equals(without_predictions(its))
            assert mine.column_names == its.column_names
            assert mine["p_purchase.fm_head.seed0"].equals(its["p_purchase.fm_head.seed0"])
        assert not mine.equals(its)


def test_it_learns_from_every_surface(learner: MakeLearner, windows: list[Window]) -> None:
    shared = learner(surfaces=BOTH, arms=ARMS)
    rows = sum(len(batch.requests.item_C) for batch in shared.batches(windows[1]))
    alone = (learner("alone", surfaces=[surface], arms=ARMS).batches(windows[1]) for surface in BOTH)
    assert rows == sum(len(batch.requests.item_C) for batches in alone for batch in batches) > 0
    batch = next(iter(shared.batches(windows[1])))
    assert set(batch.requests.surface_C.tolist()) == {0, 1}


def test_which_surface_a_candidate_is_of_is_read(learner: MakeLearner, windows: list[Window]) -> None:
    """Elsewhere the same candidate is another one, to an expert that is shared and to no other."""
    for surfaces, differs in ((BOTH, True), (BOTH[:1], False)):
        made = played(learner(f"of_{len(surfaces)}", surfaces=surfaces, arms=ARMS), windows[:2])
        batch = next(iter(made.batches(windows[2])))
        moved = replace(batch, requests=replace(batch.requests, surface_C=1 - batch.requests.surface_C))
        for member in made.members.values():
            member.model.eval()
            here, there = (member.model(*each.read_by(member.model)).logit_CT for each in (batch, moved))
            assert here.equal(there) != differs


def test_it_attends_to_the_engagements_of_all_surfaces(learner: MakeLearner, windows: list[Window]) -> None:
    shared, alone = (learner(str(len(each)), surfaces=each, arms=["control"]) for each in (BOTH, BOTH[:1]))
    found = [
        {int(s) for batch in made.batches(windows[2]) for s in batch.requests.history["surface"].surface_L}
        for made in (shared, alone)
    ]
    assert found[0] >= {0, 1}
    assert found[1] == {0}


def test_what_is_said_of_a_surface_depends_on_no_candidate_of_another(
    learner: MakeLearner, windows: list[Window], workspace: Workspace, tmp_path: Path
) -> None:
    """Law L6: without the candidates of the other surface the same is said of this one's."""
    made = played(learner(surfaces=BOTH, **RATED), windows[:2])
    whole = made.workspace.requests(windows[2].index)
    told = made.teacher.read(windows[2].index, whole).features
    part = whole.on_surface(1)
    own = whole.surface == 1
    with torch.inference_mode(), made._averaged():
        made.vocabulary.eval()
        (everything,) = made._batches([made._untaught(whole, told)])
        (alone,) = made._batches([made._untaught(part, told[torch.from_numpy(np.flatnonzero(own))])])
        for member in made.members.values():
            expected = member.predict(*everything.read_by(member.model))[torch.from_numpy(own)]
            torch.testing.assert_close(member.predict(*alone.read_by(member.model)), expected, rtol=1e-5, atol=1e-6)


def test_labels_change_nothing_before_they_are_known(
    learner: MakeLearner, windows: list[Window], other_outcomes: Workspace, tmp_path: Path
) -> None:
    """Law L2: other outcomes of a window change what is said of the next one, on all surfaces, and of none before."""
    asked = {**RATED, "arms": ["control"], "surfaces": BOTH, "log": TaeLog.Config().build(tmp_path / "nothing")}
    honest, other = learner("honest", **asked), learner("other", on=other_outcomes, **asked)
    for made in (honest, other):
        played(made, windows)
    name = "p_purchase.control.seed0"
    for surface in BOTH:
        for window, same in zip(windows, (True, True, False), strict=True):
            assert said(honest, surface, window)[name].equals(said(other, surface, window)[name]) == same


@pytest.mark.parametrize("kind", ["mlp", "dcn", "dhen", "gesr"])
def test_every_backbone_reads_which_surface(kind: str, learner: MakeLearner, windows: list[Window]) -> None:
    model = ExpertModel.Config.model_validate({"width": 4, "history": 5, "backbone": {"kind": kind}})
    made = played(learner(surfaces=BOTH, arms=["control"], seeds=[0], model=model), windows[:2])
    batch = next(iter(made.batches(windows[2])))
    moved = replace(batch, requests=replace(batch.requests, surface_C=1 - batch.requests.surface_C))
    (member,) = made.members.values()
    member.model.eval()
    with torch.no_grad():
        member.model.surface_bias.weight.zero_()  # what is left is the backbone's
    here, there = (member.model(*each.read_by(member.model)).logit_CT for each in (batch, moved))
    assert not here.equal(there)


def test_without_a_history_none_is_read(learner: MakeLearner, windows: list[Window]) -> None:
    model = ExpertModel.Config(width=4, history=0)
    made = played(learner(surfaces=BOTH, arms=ARMS, model=model), windows[:2])
    batch = next(iter(made.batches(windows[2])))
    assert len(batch.requests.history["surface"].item_L) == 0
    for member in made.members.values():
        assert not any("attention" in name for name in member.model.state_dict())


def test_a_backbone_that_attends_to_a_history_is_refused_without() -> None:
    with pytest.raises(ValueError, match=r"history: 0: backbone gesr attends to .* Give history: 16"):
        ExpertModel.Config.model_validate({"history": 0, "backbone": {"kind": "gesr"}})


def test_a_resumed_learner_goes_on_with_the_same_bits(learner: MakeLearner, windows: list[Window]) -> None:
    straight = played(learner("straight", surfaces=BOTH, **RATED), windows)
    killed = played(learner("killed", surfaces=BOTH, **RATED), windows[:2])
    killed.evaluate(windows[2])
    killed.step(next(iter(killed.batches(windows[2]))))  # and here it dies
    resumed = played(learner("killed", surfaces=BOTH, **RATED), windows)
    digests = [tensors.digest(checkpoint.pack(made.state_dict())[0]) for made in (straight, resumed)]
    assert digests[0] == digests[1]
    for surface in BOTH:
        assert said(resumed, surface, windows[2]).equals(said(straight, surface, windows[2]))


def test_a_surface_that_nothing_was_asked_of_has_a_table_without_rows(
    windows: list[Window], workspace: Workspace, tmp_path: Path
) -> None:
    requests = workspace.requests(windows[0].index).on_surface(1)
    rows = len(requests.item)
    predicted = Predicted(
        requests=requests,
        said={("control", 0): [torch.full((rows, 2), 0.25)]},
        teacher_CH=torch.full((rows, 2), 0.5),
        cohorts={"user.age=30": np.arange(rows) % 2 == 0},
    )
    predicted.write(tmp_path, workspace=workspace, window=windows[0], surfaces={"surface_0": 0, "surface_1": 1})
    tables = [predictions.read(tmp_path, surface=surface, window=windows[0].index) for surface in BOTH]
    assert [table.num_rows for table in tables] == [0, rows]
    assert tables[0].schema == tables[1].schema
    members = [pq.read_table(cohort.path_of(tmp_path, surface, windows[0].index)) for surface in BOTH]
    assert [table.num_rows for table in members] == [0, rows]


def test_sharing_is_not_asked_for_in_the_model() -> None:
    with pytest.raises(ValueError, match=r"model.shared follows from .*expert_groups: \{mailers"):
        SurfaceLearner.Config(model=ExpertModel.Config(shared=True))
