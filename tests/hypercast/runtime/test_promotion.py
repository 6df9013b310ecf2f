"""Which training serves a surface: only what is measurably better, of several movers one, and back again."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hypercast.cli import main as cli
from hypercast.errors import ConflictError, RegistryError
from hypercast.runtime import expert_file, promotion, trainings
from hypercast.runtime.trainings import Training, Version
from streaming import config as configuration
from streaming.errors import DataError
from transfer import predictions
from transfer.gain import CONTROL, TREATED
from transfer.predictions import Column


def trained(
    run: Path, name: str, *, noise: float, windows: range = range(1, 5), seed: int = 0, users: int = 60
) -> Version:
    """A version of an expert of surface_1 as if it had been trained: the less noise, the better the treated arm."""
    number = 1 + max((each.number for each in trainings.versions(run, name)), default=0)
    path = run / "experts.d" / name / f"{number:04d}"
    expert = expert_file.ExpertFile(surface="surface_1", task="buy", seeds=[0, 1])
    training = Training(expert=expert, first=windows[0], last=windows[-1], pin="FM")
    path.mkdir(parents=True)
    (path / "training.yaml").write_text(configuration.dump(training))
    version = Version(name=name, number=number, path=path)
    columns = [Column("buy", arm, each) for arm in (CONTROL, TREATED) for each in (0, 1)]
    for window in windows:
        world, own = np.random.default_rng([seed, window]), np.random.default_rng([seed, window, int(1e6 * noise)])
        size = 400
        logit = world.normal(-1.0, 1.0, size)
        values: dict[str, Any] = {
            "request_id": np.arange(size),
            "user_id": world.integers(0, users, size) * 7919,
            "candidate_id": np.zeros(size, dtype=np.int32),
            "time": pa.array(1_000_000 * np.arange(size)).cast(pa.timestamp("us", tz="UTC")),
            "weight": np.ones(size, dtype=np.float32),
            "stratum": np.zeros(size, dtype=np.int8),
            "label_buy": (world.random(size) < 1 / (1 + np.exp(-logit))).astype(np.float32),
        }
        # Seeds differ little, so that the noise floor is low.
        error = world.normal(0, 1, size)
        for column in columns:
            off = (1.0 if column.arm == CONTROL else noise) * error + own.normal(0, 0.02, size)
            values[column.name] = 1 / (1 + np.exp(-(logit + off)))
        schema = predictions.schema(tasks=["buy"], tags=[], columns=columns)
        table = pa.table({each.name: pa.array(values[each.name]).cast(each.type) for each in schema}, schema=schema)
        predictions.write(path, surface="surface_1", window=window, table=table)
    (path / "outcome.json").write_text(json.dumps({"gain": None, "coverage": 1.0}))
    return version


def test_the_first_expert_must_beat_its_control(tmp_path: Path) -> None:
    trained(tmp_path, "poor", noise=1.0)
    refused = promotion.promote(tmp_path, "poor")
    assert not refused.promoted and refused.against == CONTROL and refused.gain is not None
    assert re.search(r"no gain: .*over control in windows 1 to 4.*noise floor", refused.reason)
    assert promotion.serving(tmp_path, "surface_1") is None
    trained(tmp_path, "good", noise=0.3)
    taken = promotion.promote(tmp_path, "good")
    assert taken.promoted and taken.reason.startswith("better: +")
    assert promotion.serving(tmp_path, "surface_1") == "good@0001"


def test_a_later_one_must_beat_what_serves_and_can_be_taken_back(tmp_path: Path) -> None:
    trained(tmp_path, "good", noise=0.5)
    promotion.promote(tmp_path, "good")
    trained(tmp_path, "equal", noise=0.500001)
    refused = promotion.promote(tmp_path, "equal")  # better than its control, and no better than what serves
    assert not refused.promoted and refused.against == "good@0001" and "over good@0001" in refused.reason
    trained(tmp_path, "worse", noise=0.9)
    assert promotion.promote(tmp_path, "worse").reason.startswith("worse: -")
    trained(tmp_path, "better", noise=0.05, windows=range(3, 7))
    taken = promotion.promote(tmp_path, "better")
    assert taken.promoted and "windows 3 to 4" in taken.reason  # those that both have predicted
    assert promotion.serving(tmp_path, "surface_1") == "better@0001"
    assert promotion.promote(tmp_path, "better").reason == "it serves the surface already"
    assert promotion.rollback(tmp_path, "surface_1") == "good@0001"
    assert promotion.serving(tmp_path, "surface_1") == "good@0001"
    with pytest.raises(RegistryError, match=r"'surface_1' has been served by good@0001 only: nothing to go back to"):
        promotion.rollback(tmp_path, "surface_1")


def test_no_window_in_common_is_no_reason_to_promote(tmp_path: Path) -> None:
    trained(tmp_path, "good", noise=0.5, windows=range(1, 3))
    promotion.promote(tmp_path, "good")
    trained(tmp_path, "later", noise=0.01, windows=range(3, 5))
    refused = promotion.promote(tmp_path, "later")
    assert not refused.promoted and refused.gain is None
    assert "windows 3 to 4, good@0001 1 to 2: none in common" in refused.reason


def test_other_requests_are_not_compared(tmp_path: Path) -> None:
    trained(tmp_path, "good", noise=0.5)
    promotion.promote(tmp_path, "good")
    trained(tmp_path, "elsewhere", noise=0.1, seed=5)
    with pytest.raises(DataError, match=r"elsewhere@0001 and good@0001 were not judged on the same requests"):
        promotion.promote(tmp_path, "elsewhere")


def test_of_two_that_promote_at_once_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        trained(tmp_path, name, noise=0.3)
    judge = promotion.judge

    def slow(run: Path, candidate: Version, *, against: str | None, arm: str | None = None) -> promotion.Decision:
        monkeypatch.setattr(promotion, "judge", judge)
        promotion.promote(tmp_path, "two")  # while the other is still comparing
        return judge(run, candidate, against=against, arm=arm)

    monkeypatch.setattr(promotion, "judge", slow)
    with pytest.raises(ConflictError, match=r"surface_1/serving points to two@0001, not to nothing as expected"):
        promotion.promote(tmp_path, "one")
    assert promotion.serving(tmp_path, "surface_1") == "two@0001"


@given(noise=st.sampled_from([0.02, 0.3, 0.6, 0.9, 1.0, 1.2, 2.0]), seed=st.integers(0, 3), users=st.integers(3, 80))
@settings(max_examples=12, deadline=None)
def test_the_alias_moves_if_and_only_if_the_interval_says_better(
    noise: float, seed: int, users: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path_factory.mktemp("promote")
    trained(run, "any", noise=noise, windows=range(1, 3), seed=seed, users=users)
    decision = promotion.promote(run, "any")
    one = decision.gain
    assert one is not None
    better = one.lo > 0 and one.gain_pct > (one.noise_floor_pct or 0.0) and one.ne_arm < 1
    assert decision.promoted == better == (promotion.serving(run, "surface_1") == "any@0001")
    assert decision.reason.startswith("better") == better


def test_the_sentence_names_interval_and_floor(tmp_path: Path) -> None:
    one = trainings.measure(trained(tmp_path, "good", noise=0.3, windows=range(1, 3)))
    assert one is not None
    within = replace(one, gain_pct=0.5, lo=0.2, hi=0.8, noise_floor_pct=0.6)
    text = "no gain: +0.50 % [+0.20, +0.80] here is within the noise floor 0.60 %"
    assert promotion.explain(within, "here") == text
    alone = replace(within, noise_floor_pct=None)
    assert promotion.explain(alone, "here").endswith("here; no noise floor: one seed")
    unclear = replace(within, lo=-0.2)
    assert "the interval of +0.50 % [-0.20, +0.80] here includes 0" in promotion.explain(unclear, "here")


def test_better_than_something_useless_is_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = trained(tmp_path, "good", noise=0.3, windows=range(1, 3))
    measured = trainings.measure(candidate)
    assert measured is not None
    useless = replace(measured, ne_arm=1.1)
    monkeypatch.setattr(promotion.gain, "gains", lambda *_, **__: [useless])
    refused = promotion.promote(tmp_path, "good")
    assert not refused.promoted and promotion.serving(tmp_path, "surface_1") is None
    assert re.search(r"^not good enough: \+.*a NE of 1.100 is no better than the base rate's, 1$", refused.reason)


def own_expert(run: Path, arm: str, *, like: Version, noise: float, seed: int = 0) -> None:
    """As if the platform had trained and exported an expert of its own, which has predicted what ``like`` has."""
    (run / "experts" / "surface_1" / "window=00009" / arm).mkdir(parents=True)
    (run / "experts" / "surface_1" / "window=00003" / "older").mkdir(parents=True)
    for window in predictions.windows(like.path, "surface_1"):
        table = predictions.read(like.path, surface="surface_1", window=window)
        label = table["label_buy"].to_numpy()
        random = np.random.default_rng([7, seed, window])
        for at in (0, 1):  # the nearer to the label, the better
            said = 1 / (1 + np.exp(-(3 * (label - 0.5) * (1 - noise) - 1.0 + random.normal(0, 0.05, len(label)))))
            name = Column("buy", arm, at).name
            table = table.drop_columns([each for each in (name,) if each in table.column_names])
            table = table.append_column(pa.field(name, pa.float32(), nullable=False), pa.array(said, pa.float32()))
        predictions.write(run, surface="surface_1", window=window, table=table)


def test_without_an_alias_it_must_beat_the_platforms_own_expert(tmp_path: Path) -> None:
    cold = trained(tmp_path, "cold", noise=0.5)  # well ahead of its own control
    own_expert(tmp_path, TREATED, like=cold, noise=0.0)
    over_control = trainings.measure(cold)
    assert over_control is not None and over_control.verdict == "better"
    refused = promotion.promote(tmp_path, "cold")
    assert not refused.promoted and refused.against == "own treated"
    assert re.search(r"^worse: -.* over own treated in windows 1 to 4", refused.reason)
    assert promotion.serving(tmp_path, "surface_1") is None


@pytest.mark.parametrize(("arm", "against"), [(None, "own treated"), ("control", "own control")])
def test_what_serves_is_the_arm_that_would_answer(arm: str | None, against: str, tmp_path: Path) -> None:
    own_expert(tmp_path, CONTROL, like=trained(tmp_path, "good", noise=0.05), noise=1.0)
    (tmp_path / "experts" / "surface_1" / "window=00009" / TREATED).mkdir()
    with pytest.raises(RegistryError, match="arm kd was not exported; there are control, treated"):
        promotion.promote(tmp_path, "good", arm="kd")
    decision = promotion.promote(tmp_path, "good", arm=arm)
    assert decision.against == against and f"over {against} in windows 1 to 4" in decision.reason


def test_an_own_expert_that_has_not_predicted_these_windows_is_named(tmp_path: Path) -> None:
    trained(tmp_path, "good", noise=0.3)
    (tmp_path / "experts" / "surface_1" / "window=00009" / "tae_aux_head_adapter").mkdir(parents=True)
    (tmp_path / "experts" / "surface_1" / "window=00009" / "tae").mkdir()
    taken = promotion.promote(tmp_path, "good")
    assert taken.promoted and taken.against == CONTROL
    assert taken.reason.endswith(
        "; own tae_aux_head_adapter, which serves now, has not predicted these windows and was not compared"
    )


def test_other_requests_than_the_platforms_are_not_compared(tmp_path: Path) -> None:
    own_expert(tmp_path, TREATED, like=trained(tmp_path, "good", noise=0.3), noise=0.9)
    trained(tmp_path, "elsewhere", noise=0.1, seed=5)
    with pytest.raises(DataError, match=r"elsewhere@0001 and own treated were not judged on the same requests"):
        promotion.promote(tmp_path, "elsewhere")


def test_a_damaged_alias_is_told_from_none(tmp_path: Path) -> None:
    trained(tmp_path, "good", noise=0.3, windows=range(1, 3))
    promotion.promote(tmp_path, "good")
    file = tmp_path / "experts" / "surface_1" / "channels" / "serving.json"
    file.write_bytes(file.read_bytes().replace(b"good", b"gold"))
    with pytest.raises(RegistryError, match=r"serving.json: not what was written"):
        promotion.serving(tmp_path, "surface_1")


def test_demote_names_what_served_before(tmp_path: Path) -> None:
    for name, noise in (("good", 0.5), ("better", 0.05)):
        trained(tmp_path, name, noise=noise)
        promotion.promote(tmp_path, name)
    command = ["expert", "demote", "surface_1", "--run", str(tmp_path), "--json"]
    result = CliRunner().invoke(cli.app, command, catch_exceptions=False)
    assert json.loads(result.stdout) == {"surface": "surface_1", "served by": "good@0001"}
