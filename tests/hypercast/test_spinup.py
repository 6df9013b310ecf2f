"""Spinning up an expert of a run that is finished: its file, its training, its promotion, and the commands for it."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from typer.testing import CliRunner

from hypercast.cli import main as cli
from hypercast.errors import RegistryError
from hypercast.objects import channels
from hypercast.registry import Registry
from hypercast.runtime import expert_file, promotion, trainings
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.spinup import SpinUp
from hypercast.store.tae_log import TaeLog
from hypercast.training.loop import ContinualTrainer
from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.errors import ConfigError, DataError
from transfer import predictions
from transfer.gain import CONTROL, TREATED


def said(*arguments: object, status: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def shown(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return " ".join(result.stdout.split())


def platform(run: Path) -> PlatformConfig:
    return configuration.load(run / "platform.yaml", PlatformConfig).model_copy(update={"run": run})


def quiet(message: str, share: float) -> None:
    """No progress to show."""


@pytest.fixture
def run(copy_of_run: Path) -> Path:
    """A finished run with an expert ``fresh`` of surface_1, two seeds, that has not been trained yet."""
    said("expert", "create", "fresh", "--surface", "surface_1", "--run", copy_of_run)
    path = copy_of_run / "experts.d" / "fresh.yaml"
    path.write_text(path.read_text().replace("seeds: [0]", "seeds: [0, 1]"))
    return copy_of_run


# --- the file


def test_the_file_says_what_there_is_to_say_with_a_comment_each(run: Path) -> None:
    text = (run / "experts.d" / "fresh.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 120
    assert "surface: surface_1  # the one whose requests it ranks" in text
    assert re.search(r"^  batch_size: 8  # requests of the expert's surfaces in a training step$", text, re.M)
    assert re.search(r"^    learning_rate: 0.005  # of AdamW$", text, re.M)
    assert "last 4 windows: hypercast expert train fresh --backfill 4" in text  # there are no more
    assert "arms:" not in text
    made = expert_file.read(run, "fresh")
    assert (made.surface, made.task, made.mode, made.seeds) == ("surface_1", "purchase", TREATED, [0, 1])
    assert made.learner.arms == [CONTROL, TREATED]
    settings_of_the_platform = platform(run).expert.model_dump(exclude={"arms"})
    assert made.learner.model_dump(exclude={"arms"}) == settings_of_the_platform


NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12)


@given(
    value=st.builds(
        expert_file.ExpertFile,
        surface=NAMES,
        task=NAMES,
        mode=st.sampled_from(expert_file.MODES),
        seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
    )
)
@settings(max_examples=10, deadline=None)
def test_commented_yaml_reads_back_as_it_was(value: expert_file.ExpertFile, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("file") / "expert.yaml"
    path.write_text(expert_file.commented(value), encoding="utf-8")
    assert configuration.load(path, expert_file.ExpertFile) == value


def test_like_starts_from_another_experts_file(run: Path) -> None:
    path = run / "experts.d" / "fresh.yaml"
    path.write_text(path.read_text().replace("batch_size: 8", "batch_size: 5"))
    here = ("--run", run)
    said("expert", "create", "second", "--surface", "surface_0", "--like", "fresh", "--mode", "tae", *here)
    second = expert_file.read(run, "second")
    assert (second.surface, second.mode, second.seeds, second.learner.batch_size) == ("surface_0", "tae", [0, 1], 5)
    assert second.learner.arms == [CONTROL, "tae"]


def test_a_file_is_never_overwritten(run: Path) -> None:
    before = (run / "experts.d" / "fresh.yaml").read_bytes()
    with pytest.raises(RegistryError, match=r"fresh.yaml: there is an expert 'fresh' already.*--like fresh"):
        said("expert", "create", "fresh", "--surface", "surface_0", "--run", run)
    assert (run / "experts.d" / "fresh.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("../fresh", {}, r"expert name '../fresh' cannot be used"),
        ("surface_0", {}, r"'surface_0' is taken by the platform's own expert of that surface"),
        ("new", {"surface": "shop"}, r"no surface 'shop'; it has surface_0, surface_1.*Example: surface: surface_0"),
        ("new", {"task": "click"}, r"no task 'click'; it has purchase"),
        ("new", {"mode": "all"}, r"key 'mode'.*no mode 'all'; allowed are .*tae.*treated"),
        ("new", {"like": "old"}, r"there is no expert 'old'; there are: fresh"),
    ],
)
def test_mistakes_of_create_are_named(name: str, more: dict[str, str], message: str, run: Path) -> None:
    options = {"surface": "surface_0"} | more
    with pytest.raises((ConfigError, RegistryError), match=f"(?s){message}"):
        said("expert", "create", name, *(part for key, value in options.items() for part in (f"--{key}", value)),
             "--run", run)  # fmt: skip
    assert expert_file.names(run) == ["fresh"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [0, 1]", "seeds: [1, 1]", r"key 'seeds'.*the same seed twice"),
        ("mode: treated", "mode: control", r"key 'mode'.*no mode 'control'"),
        ("learner:", "learner:\n  arms: [tae]", r"key 'learner'.*arms follow from the mode.*leave `arms` out"),
        ("surface: surface_1", "surface: hall", r"fresh.yaml: the data set has no surface 'hall'"),
        ("task: purchase", "job: purchase", r"key 'task': Field required"),
    ],
)
def test_mistakes_in_the_file_are_named(old: str, new: str, message: str, run: Path) -> None:
    path = run / "experts.d" / "fresh.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        SpinUp(platform=platform(run), name="fresh")


# --- what the run can serve

SERVED = {mode for mode in expert_file.MODES if mode not in ("user_embedding", "tae_sequence", "finetune")}


@pytest.mark.parametrize("mode", expert_file.MODES)
def test_create_makes_what_can_be_trained_and_refuses_the_rest_whole(mode: str, run: Path) -> None:
    before = {path.relative_to(run) for path in run.rglob("*")}
    command = ("expert", "create", "new", "--surface", "surface_0", "--mode", mode, "--run", run)
    if mode in SERVED:
        assert said(*command)["backfill"] == 4
        return
    with pytest.raises(RegistryError) as refused:
        said(*command)
    text = " ".join(str(refused.value).split())
    assert f"mode '{mode}' reads " in text and "window 4 was published by FM@0004 with penultimate, not" in text
    assert "Modes that it can serve now: kd, aux_head," in text and "create new --surface surface_0" in text
    assert re.search(r"foundation: \{publisher: \{representations: \[penultimate, (user|sequence|tower_input)\]", text)
    assert ("keep: 13" in text) == (mode == "finetune")
    assert {path.relative_to(run) for path in run.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("mode", sorted(SERVED))
def test_what_create_makes_can_be_trained(mode: str, run: Path) -> None:
    said("expert", "create", "new", "--surface", "surface_0", "--mode", mode, "--run", run)
    assert said("expert", "train", "new", "--backfill", 1, "--run", run)["coverage"] == 1.0


def test_a_mode_that_was_edited_in_is_refused_before_anything_is_begun(run: Path) -> None:
    path = run / "experts.d" / "fresh.yaml"
    path.write_text(path.read_text().replace("mode: treated", "mode: user_embedding"))
    with pytest.raises(
        RegistryError, match=r"penultimate, not user, and no snapshot.*Modes that the run can serve: kd"
    ):
        SpinUp(platform=platform(run), name="fresh").train(backfill=2, progress=quiet)
    assert trainings.versions(run, "fresh") == []


# --- training


def test_without_a_number_a_short_data_set_is_replayed_whole(run: Path) -> None:
    version = SpinUp(platform=platform(run), name="fresh").train(progress=quiet)
    windows = platform(run).dataset
    assert (version.training.first, version.training.last) == (1, len(Dataset.open(windows.path).windows))


def test_training_publishes_what_is_missing_and_trains_the_control_beside_it(run: Path) -> None:
    log = TaeLog(run / "tae_log")
    published = log.segment("FM@0004", 4)
    digest = published.sha256
    log.delete("FM@0004", 4)
    told: list[tuple[str, float]] = []
    version = SpinUp(platform=platform(run), name="fresh").train(
        backfill=2, progress=lambda message, share: told.append((message, share))
    )
    assert [message for message, _ in told] == ["publishing TAEs", "fresh@0001, window 3", "fresh@0001, window 4"]
    assert told[-1][1] == 1.0
    assert TaeLog(run / "tae_log").segment("FM@0004", 4).sha256 == digest  # by the snapshot that wrote it before
    assert predictions.windows(version.path, "surface_1") == [3, 4]
    names = predictions.read(version.path, surface="surface_1", window=3).column_names
    arms = {(column.arm, column.seed) for column in predictions.columns_of(names, task="purchase")}
    assert arms == {(CONTROL, 0), (CONTROL, 1), (TREATED, 0), (TREATED, 1), ("fm_head", 0)}
    outcome = version.outcome
    assert outcome is not None and outcome["coverage"] == 1.0
    assert outcome["gain"]["lo"] <= outcome["gain"]["gain_pct"] <= outcome["gain"]["hi"]
    assert outcome["gain"]["noise_floor_pct"] > 0
    assert {path.name for path in (version.path / "model").iterdir()} == {CONTROL, TREATED}


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_same_bits(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SpinUp(platform=platform(run), name="fresh").train(backfill=3, progress=quiet)
    expected = {path.name: path.read_bytes() for path in (whole.path / "predictions").rglob("*.parquet")}
    (run / "experts.d" / "again.yaml").write_bytes((run / "experts.d" / "fresh.yaml").read_bytes())
    run_window = ContinualTrainer.run_window

    def killed(trainer: ContinualTrainer[Any], window: Any) -> dict[str, float]:
        if window.index == 3:
            raise KeyboardInterrupt
        return run_window(trainer, window)

    monkeypatch.setattr(ContinualTrainer, "run_window", killed)
    with pytest.raises(KeyboardInterrupt):
        SpinUp(platform=platform(run), name="again").train(backfill=3, progress=quiet)
    monkeypatch.undo()
    (begun,) = trainings.versions(run, "again")
    assert begun.outcome is None
    with pytest.raises(RegistryError, match=r"'again' has no complete training to promote.*expert train again"):
        promotion.promote(run, "again")
    resumed = SpinUp(platform=platform(run), name="again").train(backfill=3, progress=quiet)
    assert resumed.label == "again@0001"
    assert {path.name: path.read_bytes() for path in (resumed.path / "predictions").rglob("*.parquet")} == expected
    assert resumed.outcome == whole.outcome


@pytest.mark.slow
def test_the_same_training_is_not_done_twice_and_another_is_another_version(run: Path, metrics_of) -> None:
    first = SpinUp(platform=platform(run), name="fresh").train(backfill=2, progress=quiet)
    logged = metrics_of(run)
    same = SpinUp(platform=platform(run), name="fresh").train(backfill=2, progress=quiet)
    assert same == first
    assert metrics_of(run) == logged
    path = run / "experts.d" / "fresh.yaml"
    path.write_text(path.read_text().replace("mode: treated", "mode: tae"))
    other = SpinUp(platform=platform(run), name="fresh").train(backfill=2, progress=quiet)
    assert other.label == "fresh@0002"
    assert SpinUp(platform=platform(run), name="fresh").train(backfill=1, progress=quiet).label == "fresh@0003"
    assert [version.training.first for version in trainings.versions(run, "fresh")] == [3, 3, 4]


def test_mlflow_has_the_training_beneath_the_platforms_run(run: Path, metrics_of) -> None:
    SpinUp(platform=platform(run), name="fresh").train(backfill=2, progress=quiet)
    client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    runs = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    arms = [f"fresh@0001/{arm}/seed{seed}" for arm in (CONTROL, TREATED) for seed in (0, 1)]
    for name in ("fresh@0001", *arms):
        assert runs[name].data.tags["mlflow.parentRunId"] == runs["platform"].info.run_id
    histories = metrics_of(run)
    for name in arms:
        for metric in ("ne", "auc", "calibration", "train_loss"):
            assert [step for step, _, _ in histories[name, metric]] == [3, 4]
    for metric in ("gain_pct/treated_vs_control", "gain_lo/treated_vs_control", "coverage/fresh"):
        assert [step for step, _, _ in histories["fresh@0001", metric]] == [3, 4]
    assert runs["fresh@0001"].data.params["expert.surface"] == "surface_1"


def test_windows_that_no_snapshot_may_publish_are_refused(run: Path) -> None:
    TaeLog(run / "tae_log").delete("FM@0003", 3)  # and FM@0003 itself is pruned: keep is 2
    with pytest.raises(RegistryError, match=r"window 3 has no TAEs by FM.*the registry has FM@0004.*fewer windows"):
        SpinUp(platform=platform(run), name="fresh").train(backfill=2, progress=quiet)
    assert trainings.versions(run, "fresh") == []
    SpinUp(platform=platform(run), name="fresh").train(backfill=1, progress=quiet)


def test_a_pinned_expert_reads_its_own_snapshot_only(run: Path) -> None:
    Registry(run / "registry").pin("fresh", lineage="FM", version=5)  # has seen all four windows
    with pytest.raises(RegistryError, match=r"window 4 has no TAEs by FM@0005.*the registry has FM@0005"):
        SpinUp(platform=platform(run), name="fresh").train(backfill=1, progress=quiet)
    Registry(run / "registry").pin("fresh", lineage="FM", version=4)
    version = SpinUp(platform=platform(run), name="fresh").train(backfill=1, progress=quiet)
    assert version.training.pin == "FM@0004"


def test_more_windows_than_there_are_is_a_mistake(run: Path) -> None:
    with pytest.raises(DataError, match=r"cannot replay the last 5 windows; allowed is 1 to 4.*--backfill 4"):
        SpinUp(platform=platform(run), name="fresh").train(backfill=5, progress=quiet)


# --- commands


def test_commands_from_create_to_promote(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ("--run", run)
    result = said("expert", "train", "fresh", "--backfill", 2, *here)
    assert (result["expert"], result["surface"], result["mode"]) == ("fresh@0001", "surface_1", TREATED)
    assert (result["first_window"], result["last_window"], result["coverage"]) == (3, 4, 1.0)
    told = shown("expert", "train", "fresh", "--backfill", 2, *here)
    assert "over control in windows 3 to 4" in told and "noise floor" in told and "100.0 %" in told
    assert {*result["seconds"]} == {"open", "publish", "learn", "measure", "to_gain"}
    assert result["seconds"]["to_gain"] == sum(result["seconds"].values()) - result["seconds"]["to_gain"] > 0
    # It is no better than the platform's own expert, which has learned two windows more.
    decision = said("expert", "promote", "fresh", *here, status=1)
    against = (decision["promoted"], decision["candidate"], decision["against"])
    assert against == (False, "fresh@0001", "own treated")
    assert decision["reason"] in shown("expert", "promote", "fresh", *here, status=1)
    channels.write(
        run / "experts",
        channels.Channel(lineage="surface_1", name=promotion.SERVING).to("old@0001").to("fresh@0001"),
    )
    own, _, other = said("expert", "list", *here)
    assert (own["expert"], own["pinned to"], own["serves"]) == ("fresh", "FM", "fresh@0001")
    assert (own["surface"], own["trained"]) == ("surface_1", "fresh@0001")
    assert own["gain_pct"] == round(result["gain"]["gain_pct"], 3)
    assert (other["expert"], other["trained"]) == ("surface_1", None)
    assert "gain, %" in shown("expert", "list", *here)
    monkeypatch.setattr(sys, "argv", ["hypercast", "expert", "demote", "surface_1", "--run", str(run)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "old@0001 served a surface, and its folder under experts.d is gone" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_missing_run_is_one_clear_message(tmp_path: Path, mistaken: Callable[..., str]) -> None:
    assert "platform.yaml: cannot be read" in mistaken("expert", "train", "fresh", "--run", tmp_path)


@pytest.fixture
def mistaken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["hypercast", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 2
        return capsys.readouterr().err

    return call
