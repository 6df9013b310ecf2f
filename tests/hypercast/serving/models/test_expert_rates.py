"""Experts that read label rates answer what they predicted in the loop that trained them."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from experts.export import SETTINGS, TABLES, export_rates
from hypercast.errors import RegistryError
from hypercast.runtime import spinup
from hypercast.runtime.jobs import ExpertJob
from hypercast.runtime.spinup import SpinUp
from hypercast.serving.config import ServedPrecision
from hypercast.serving.metrics import Metrics
from hypercast.serving.models.bundle import BundleLoader
from hypercast.serving.models.expert import ExpertScorer
from hypercast.serving.precision import options
from hypercast.serving.precision.loader import CompactLoader
from streaming.importers.synthetic import Synthetic
from tests.hypercast.serving.conftest import SETTINGS as PLATFORM
from tests.hypercast.serving.conftest import Played, play
from tests.hypercast.serving.models.test_scorers import Situation, ask, expert, foundation, predict
from tests.hypercast.serving.precision.world import never_float32

ARMS = ["control", "tae"]


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """A platform whose experts read label rates; labels come days later."""
    root = tmp_path_factory.mktemp("rated")
    config = Synthetic.Config(users=8, windows=3, candidates=4, surfaces=2, label_delay_seconds=4 * 86400.0)
    config.build(root / "data")
    learner = {**PLATFORM["expert"], "arms": ARMS, "label_rates": {"half_life": 2.0, "strength": 3.0}}
    return play(Played(run=root / "run", dataset=root / "data", trained=2, changes={"expert": learner}))


@pytest.fixture(scope="module")
def asked(rated: Played) -> Situation:
    return ask(rated)


def exported(played: Played, surface: int) -> Path:
    return played.run / "experts" / f"surface_{surface}" / f"window={played.trained:05d}"


def test_an_expert_says_what_it_predicted(rated: Played, asked: Situation, tmp_path: Path) -> None:
    workspace, _, requests = asked
    predicted = predict(rated, tmp_path / "predicted")
    teacher = foundation(rated, workspace).score(requests)
    for arm in ARMS:
        said = expert(rated, workspace, arm).score(requests, teacher.features())
        np.testing.assert_allclose(said, predicted[arm], rtol=2e-4, atol=1e-6)


def test_all_arms_and_surfaces_of_a_window_share_the_counts(rated: Played) -> None:
    first, second = (exported(rated, surface) for surface in (0, 1))
    assert (first / TABLES).read_bytes() == (second / TABLES).read_bytes()
    told = {(folder / arm / SETTINGS).read_text() for folder in (first, second) for arm in ARMS}
    assert len(told) == 1


def test_a_job_that_resumes_exports_the_same(rated: Played, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(rated.run, run)
    config = rated.config.model_copy(update={"run": run})
    again = ExpertJob(config, run, ["surface_1"]).export(tmp_path / "again")["surface_1"]
    before = exported(rated, 1)
    files = sorted(path.relative_to(before) for path in before.rglob("*") if path.is_file())
    assert len(files) == 1 + 3 * len(ARMS)
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for file in files:
        assert (again / file).read_bytes() == (before / file).read_bytes(), file


def test_a_bundle_of_them_answers_compact_too(rated: Played, asked: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(contestants: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
        return never_float32(contestants)

    monkeypatch.setattr(options, "in_turn", timed)
    workspace, _, requests = asked
    loader, metrics = BundleLoader(config=rated.config, workspace=workspace), Metrics()
    bundle = loader.load()
    precision = ServedPrecision.model_validate({"requests": 16})
    made = CompactLoader(
        loader=loader, config=precision, workspace=workspace, batch=8, live=True, metrics=metrics
    ).load()
    assert metrics.value("precision_models_total", model="surface_1/tae", outcome="compact") == 1
    said = [each.experts["surface_1"].score(requests) for each in (bundle, made)]
    assert (said[0] != said[1]).any()
    np.testing.assert_allclose(said[1], said[0], atol=0.02)


def test_without_its_counts_an_expert_is_refused(rated: Played, asked: Situation, tmp_path: Path) -> None:
    copy = Played(run=tmp_path / "run", dataset=rated.dataset, trained=rated.trained, changes=rated.changes)
    shutil.copytree(rated.run, copy.run)
    (exported(copy, 1) / TABLES).unlink()
    with pytest.raises(RegistryError, match=f"{TABLES}: missing"):
        expert(copy, asked[0], "tae")
    (exported(copy, 1) / "tae" / SETTINGS).unlink()
    with pytest.raises(RegistryError, match="another data set"):
        expert(copy, asked[0], "tae")


@pytest.mark.slow
def test_an_expert_of_a_file_exports_what_would_be_read_after_the_last_window(rated: Played, tmp_path: Path) -> None:
    copy = Played(run=tmp_path / "run", dataset=rated.dataset, trained=rated.trained, changes=rated.changes)
    shutil.copytree(rated.run, copy.run)
    spinup.create(copy.config, "fresh", surface="surface_0", mode="tae")
    version = SpinUp(platform=copy.config, name="fresh").train(backfill=1, progress=lambda message, share: None)
    last = copy.next_window.index
    assert version.training.last == last == copy.workspace().dataset.windows[-1].index
    (tmp_path / "after").mkdir()
    export_rates(tmp_path / "after", copy.workspace().with_label_rates(copy.config.expert.label_rates), before=last + 1)
    assert (version.path / "model" / TABLES).read_bytes() == (tmp_path / "after" / TABLES).read_bytes()
    assert (version.path / "model" / TABLES).read_bytes() != (exported(rated, 0) / TABLES).read_bytes()
    for arm in ARMS:
        scorer = ExpertScorer(
            folder=version.path / "model" / arm,
            surface="surface_0",
            workspace=copy.workspace(),
            dims=copy.snapshot.dims,
            as_of=copy.next_window.end,
        )
        assert scorer.arm == arm
