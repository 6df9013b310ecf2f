"""Surfaces that share an expert: in the file, among the jobs, in the run folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from hypercast import pins
from hypercast.cli.main import app
from hypercast.errors import RegistryError
from hypercast.registry import Registry
from hypercast.runtime import spinup
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import ExpertJob
from hypercast.runtime.plan import jobs
from hypercast.runtime.platform import Platform
from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.errors import ConfigError
from transfer import health, predictions

SURFACES = ["surface_0", "surface_1"]
SHARED = "expert_groups: {both: [surface_1, surface_0]}"
MakeFile = Callable[..., Path]


def load(file: Path) -> PlatformConfig:
    return configuration.load(file, PlatformConfig)


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory, platform_file: MakeFile) -> Path:
    """The folder of a run whose surfaces share an expert, at its end."""
    run = tmp_path_factory.mktemp("shared") / "run"
    file = platform_file(run, SHARED)
    Platform(load(file)).run(lambda message, share: None)
    return run


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("expert_groups: {both: [surface_0]}", r"key 'expert_groups.both'.*at least 2 items"),
        ("expert_groups: {a: [x, y], b: [y, z]}", r"expert_groups: \['y'\] are named twice"),
        ("expert_groups: {../up: [x, y]}", r"expert_groups: '../up' names a folder: allowed is a letter"),
        ("expert_groups: {a: [x, y]}\nstream: {bootstrap_servers: '127.0.0.1:9'}", r"expert_groups: .*Leave them out"),
        ("expert_groups: {a: [x, y, x]}", r"\['x'\] are named twice"),
    ],
)
def test_a_group_that_cannot_be_is_refused(extra: str, message: str, platform_file: MakeFile, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){message}"):
        load(platform_file(tmp_path / "run", extra))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"surface_1": ["surface_0", "surface_1"]}, "'surface_1' is a surface. Give the group a name of its own"),
        (
            {"both": ["surface_0", "window"]},
            "groups.both: there is no surface window. The data set has surface_0",
        ),
    ],
)
def test_a_group_that_does_not_fit_the_data_set_is_refused(
    groups: dict[str, list[str]], message: str, platform_file: MakeFile, tmp_path: Path
) -> None:
    config = load(platform_file(tmp_path / "run")).model_copy(update={"expert_groups": groups})
    with pytest.raises(ConfigError, match=message):
        config.experts_of(SURFACES)
    with pytest.raises(ConfigError, match=message):
        Platform(config)
    assert not (config.run / "platform.yaml").exists()


def test_jobs_are_dealt_whole_experts(platform_file: MakeFile, tmp_path: Path) -> None:
    names = [f"s{number}" for number in range(5)]
    groups = {"pair": ["s3", "s1"], "twins": ["s0", "s4"]}
    config = load(platform_file(tmp_path / "run")).model_copy(update={"expert_groups": groups, "expert_jobs": 9})
    assert config.experts_of(names) == {"twins": ["s0", "s4"], "pair": ["s1", "s3"], "s2": ["s2"]}
    dealt = [job.arguments[2] for job in jobs(config, run=tmp_path, surfaces=names)[1:]]
    assert dealt == [["s0", "s4"], ["s1", "s3"], ["s2"]]
    two = config.model_copy(update={"expert_jobs": 2})
    dealt = [job.arguments[2] for job in jobs(two, run=tmp_path, surfaces=names)[1:]]
    assert dealt == [["s0", "s4", "s2"], ["s1", "s3"]]


def test_a_run_predicts_exports_and_registers_each_surface(shared_run: Path, small_dataset: Dataset) -> None:
    config = load(shared_run / "platform.yaml")
    windows = [window.index for window in small_dataset.windows]
    assert sorted(path.name for path in (shared_run / "checkpoints" / "experts").iterdir()) == ["both"]
    client = MlflowClient(tracking_uri=f"sqlite:///{shared_run / 'mlflow.db'}")
    for surface in SURFACES:
        assert predictions.windows(shared_run, surface) == windows
        folder = shared_run / "experts" / surface / f"window={windows[-1]:05d}"
        assert {path.name for path in folder.iterdir()} == set(config.expert.arms)
        assert "shared: true" in (folder / "treated" / "expert.yaml").read_text(encoding="utf-8")
        versions = client.search_model_versions(f"name = '{config.name}-{surface}'")
        assert {version.tags["arm"] for version in versions} == set(config.expert.arms)
    noted = health.read(shared_run, surfaces=SURFACES)
    assert list(noted.coverage) == SURFACES
    assert all(set(series) == {"expired", "fresh", "miss", "stale"} for series in noted.coverage.values())
    assert all(noted.age[surface][windows[-1]] > 0 for surface in SURFACES)
    assert "Coverage and staleness" in (shared_run / "report.html").read_text(encoding="utf-8")
    report = (shared_run / "report.md").read_text(encoding="utf-8")
    assert all(f"| {surface} |" in report for surface in SURFACES)


def test_a_run_goes_on_where_it_was(shared_run: Path, platform_file: MakeFile, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = load(platform_file(run, SHARED))
    Platform(config.model_copy(update={"windows": 2})).run(lambda message, share: None)
    Platform(config).run(lambda message, share: None)
    for surface in SURFACES:
        for window in predictions.windows(shared_run, surface):
            one, other = (predictions.read(each, surface=surface, window=window) for each in (run, shared_run))
            assert one.equals(other)


def test_a_run_with_other_groups_is_another_run(shared_run: Path) -> None:
    config = load(shared_run / "platform.yaml").model_copy(update={"expert_groups": {}})
    with pytest.raises(ConfigError, match="another configuration"):
        Platform(config).run(lambda message, share: None)


def test_surfaces_that_share_an_expert_are_pinned_alike(platform_file: MakeFile, tmp_path: Path) -> None:
    config = load(platform_file(tmp_path / "run", SHARED))
    Platform(config.model_copy(update={"windows": 2})).run(lambda message, share: None)
    registry = Registry(config.run / "registry")
    registry.pin("surface_1", lineage="FM", version=registry.list("FM")[-1].version)
    with pytest.raises(
        RegistryError, match=r"pinned apart: surface_0 to FM, surface_1 to FM@.*expert pin surface_0 --lineage FM --run"
    ):
        ExpertJob(config, config.run, SURFACES)
    registry.rollback("surface_1")
    with pytest.raises(ValueError, match=r"takes whole groups of the data set's surfaces: \['surface_1'\]"):
        ExpertJob(config, config.run, ["surface_0"])
    assert list(ExpertJob(config, config.run, SURFACES).learners) == ["both"]


def test_a_pin_of_the_group_or_of_a_surface_is_one_of_all_its_surfaces(shared_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(shared_run, tmp_path / "run")
    newest = Registry(run / "registry").list("FM")[-1]

    def say(*words: str) -> dict[str, object]:
        result = CliRunner().invoke(app, ["expert", *words, "--run", str(run), "--json"])
        assert result.exit_code == 0, result.output
        said: dict[str, object] = json.loads(result.stdout)
        return said

    def pinned() -> set[str]:
        return {Registry(run / "registry").pinned(surface).target for surface in SURFACES}

    for name in ("both", "surface_1"):
        given = say("pin", name, "--version", str(newest.version))
        assert given == {"expert": name, "pinned to": newest.name, "surfaces": ["surface_1", "surface_0"]}
        assert pinned() == {newest.name}
        assert say("rollback", name)["pinned to"] == "FM"
        assert pinned() == {"FM"}
    for words in (("rollback", "both"), ("pin", "both", "--version", "99")):
        assert CliRunner().invoke(app, ["expert", *words, "--run", str(run)]).exit_code != 0
        assert pinned() == {"FM"}
    assert "both" not in pins.experts(run / "registry")


def test_surfaces_that_were_pinned_apart_do_not_go_back_together(shared_run: Path, tmp_path: Path) -> None:
    registry = Registry(shutil.copytree(shared_run, tmp_path / "run") / "registry")
    older, newest = registry.list("FM")[-2:]
    registry.pin("surface_0", lineage="FM", version=older.version)
    registry.pin_together(SURFACES, lineage="FM", version=newest.version)
    with pytest.raises(RegistryError, match=rf"surface_0 to {older.name}, surface_1 to FM\. Give them a pin"):
        registry.rollback_together(SURFACES)
    assert {registry.pinned(surface).target for surface in SURFACES} == {newest.name}
    registry.rollback("surface_1")
    with pytest.raises(RegistryError, match="'surface_1' has had one pin only"):
        registry.rollback_together(SURFACES)
    assert registry.pinned("surface_0").target == newest.name


def test_an_expert_of_one_surface_can_be_made_beside_it(shared_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(shared_run, tmp_path / "run")
    config = load(run / "platform.yaml").model_copy(update={"run": run})
    with pytest.raises(RegistryError, match="'both' is taken by the platform's own expert"):
        spinup.create(config, "both", surface="surface_0")
    path, _, _ = spinup.create(config, "mine", surface="surface_0", mode="treated")
    assert "shared:" not in path.read_text(encoding="utf-8")
    version = spinup.SpinUp(platform=config, name="mine").train(backfill=2, progress=lambda message, share: None)
    assert version.outcome is not None and version.outcome["gain"] is not None
