"""An expert that surfaces share answers on each what it predicted in the loop that trained it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from hypercast.runtime.jobs import ExpertJob
from hypercast.serving.models.bundle import BundleLoader
from streaming.importers.synthetic import Synthetic
from tests.hypercast.serving.conftest import SETTINGS, Played, play
from tests.hypercast.serving.models.test_scorers import SURFACE, Situation, ask, expert, foundation
from transfer import predictions
from transfer.predictions import Column

ARMS = ["control", "treated"]
GROUPS = {"both": ["surface_0", "surface_1"]}


@pytest.fixture(scope="module", params=[8, 0], ids=["history", "no_history"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    root = tmp_path_factory.mktemp("shared")
    Synthetic.Config(users=8, windows=3, candidates=4, surfaces=2).build(root / "data")
    model = {**SETTINGS["expert"]["model"], "history": request.param}
    changes = {"expert": {**SETTINGS["expert"], "arms": ARMS, "model": model}, "expert_groups": GROUPS}
    return play(Played(run=root / "run", dataset=root / "data", trained=2, changes=changes))


@pytest.fixture(scope="module")
def asked(shared: Played) -> Situation:
    return ask(shared)


def test_it_says_what_it_predicted(shared: Played, asked: Situation, tmp_path: Path) -> None:
    workspace, _, requests = asked
    run, window = shutil.copytree(shared.run, tmp_path / "run"), shared.next_window
    job = ExpertJob(shared.config.model_copy(update={"run": run}), run, GROUPS["both"])
    job.learners["both"].evaluate(window)
    surface = workspace.inputs.surfaces[SURFACE]
    table = predictions.read(run, surface=surface, window=window.index)
    teacher = foundation(shared, workspace).score(requests)
    for arm in ARMS:
        said = expert(shared, workspace, arm).score(requests, teacher.features())
        columns = [table[Column(task.name, arm, 0).name].to_numpy() for task in workspace.plan.tasks]
        np.testing.assert_allclose(said, np.stack(columns, axis=1), rtol=2e-4, atol=1e-6)


def test_a_bundle_has_it_on_every_surface(shared: Played) -> None:
    bundle = BundleLoader(config=shared.config, workspace=shared.workspace()).load()
    assert sorted(bundle.experts) == GROUPS["both"]
    assert {scorer.arm for scorer in bundle.experts.values()} == {"treated"}
    assert all(scorer.model.config.shared for scorer in bundle.experts.values())
