"""An expert that starts from the foundation model's tower: when, from which snapshot, and what it makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from experts.finetune import Start
from experts.steps import SurfaceLearner
from foundation.hstu.layer import HSTUStack
from foundation.hstu.vocabulary import BatchVocabulary
from foundation.model import FoundationModel
from foundation.publish import Publisher
from hypercast import tensors
from hypercast.pins import Pin
from hypercast.registry import Registry
from hypercast.store.tae_log import TaeLog
from hypercast.training import checkpoint
from hypercast.training.loop import ContinualTrainer
from streaming.errors import ConfigError
from streaming.workspace import Workspace
from transfer import predictions
from transfer.gain import FM_HEAD

STARTS = 3
"""The window before which the tower is taken over."""


@dataclass(frozen=True)
class Teacher:
    """Snapshots FM@0001 to FM@0005, the n-th of which ends where the n-th window starts, and what each published."""

    registry: Registry
    log: TaeLog
    config: FoundationModel.Config


@pytest.fixture(scope="module")
def teacher(
    workspace: Workspace, embedding: int, sizes: BatchVocabulary.Config, tmp_path_factory: pytest.TempPathFactory
) -> Teacher:
    root: Path = tmp_path_factory.mktemp("tower")
    registry, log = Registry(root / "registry"), TaeLog.Config().build(root / "log")
    stack = HSTUStack.Config(layers=1)
    config = FoundationModel.Config(
        width=8, representation=embedding, tower=12, history=10, stack=stack, vocabulary=sizes
    )
    publisher = Publisher(
        config=Publisher.Config(representations=["penultimate", "tower_input"], dtype="float32", keep=9),
        model=config,
        workspace=workspace,
        registry=registry,
        log=log,
    )
    for seed, window in enumerate(workspace.dataset.windows[:5]):
        publisher.release(config.build(inputs=workspace.inputs, seed=seed), watermark=window.start, metrics={})
        publisher.publish(window)
    return Teacher(registry, log, config)


@pytest.fixture
def made(
    learner: Callable[..., SurfaceLearner], teacher: Teacher, workspace: Workspace
) -> Callable[..., SurfaceLearner]:
    """Makes learners of both arms."""
    usual = {
        "arms": ["control", "finetune"],
        "seeds": [0],
        "log": teacher.log,
        "registry": teacher.registry,
        "tower": teacher.config.tower_shape(workspace.inputs),
        "finetune_window": STARTS,
    }
    return lambda run="run", **settings: learner(run, **{**usual, **settings})


def trainer(made: SurfaceLearner) -> ContinualTrainer:
    return ContinualTrainer(config=ContinualTrainer.Config(), learner=made, checkpoints=made.run / "checkpoints")


def run(made: SurfaceLearner, windows: int) -> SurfaceLearner:
    for window in made.workspace.dataset.windows[:windows]:
        trainer(made).run_window(window)
    return made


def logit(made: SurfaceLearner, arm: str, window: int) -> np.ndarray:
    chance = predictions.read(made.run, surface="surface_1", window=window)[f"p_purchase.{arm}.seed0"].to_numpy()
    return np.log(chance / (1 - chance.astype(np.float64)))


def tower(made: SurfaceLearner) -> dict[str, np.ndarray]:
    found = made.members["finetune", 0].model.tower
    assert found is not None
    return {name: value.detach().numpy().copy() for name, value in found.named_parameters()}


def is_of(made: SurfaceLearner, teacher: Teacher, snapshot: str) -> bool:
    weights = teacher.registry.get(snapshot).load()
    return np.array_equal(tower(made)["hidden.weight"], weights["tower.0.weight"].numpy())


def test_it_is_the_control_until_it_starts_and_then_the_control_and_the_teacher(made) -> None:
    one = run(made(), STARTS - 1)
    for window in range(1, STARTS):
        np.testing.assert_array_equal(logit(one, "finetune", window), logit(one, "control", window))
    one.evaluate(one.workspace.dataset.window(STARTS))
    added = logit(one, "finetune", STARTS) - logit(one, "control", STARTS)
    np.testing.assert_allclose(added, logit(one, FM_HEAD, STARTS), atol=1e-4)
    assert np.abs(added).max() > 0.01


def test_the_tower_is_trained_from_then_on(made, teacher: Teacher) -> None:
    one = run(made(), STARTS - 1)
    before = tower(one)
    one.evaluate(one.workspace.dataset.window(STARTS))
    assert is_of(one, teacher, f"FM@{STARTS:04d}") and not np.array_equal(
        tower(one)["heads.weight"], before["heads.weight"]
    )
    given = tower(one)
    run(one, STARTS)
    assert all(not np.array_equal(value, given[name]) for name, value in tower(one).items())
    run(one, STARTS + 1)
    assert not is_of(one, teacher, f"FM@{STARTS + 1:04d}")  # once


@pytest.mark.parametrize(
    ("settings", "snapshot"),
    [
        ({}, "FM@0003"),  # newer snapshots are there, and have seen the window
        ({"teacher_delay_windows": 1}, "FM@0002"),
        ({"pin": Pin(expert="surface_1", lineage="FM", version=1)}, "FM@0001"),
    ],
)
def test_it_starts_from_a_snapshot_that_has_seen_nothing_of_the_window(
    made, teacher: Teacher, settings: dict, snapshot: str, workspace: Workspace
) -> None:
    """Law L3, and what an arm may not know by its delay or its pin."""
    one = made(**settings)
    Start(registry=teacher.registry, pin=one.pin, dataset=workspace.dataset).give(
        one.members.values(), workspace.dataset.window(STARTS), delay=one.config.teacher_delay_windows
    )
    assert is_of(one, teacher, snapshot)


def test_of_a_pin_that_has_seen_the_window_nothing_is_taken_yet(made, teacher: Teacher, workspace: Workspace) -> None:
    one = made(pin=Pin(expert="surface_1", lineage="FM", version=4))
    start = Start(registry=teacher.registry, pin=one.pin, dataset=workspace.dataset)
    for window, taken in ((3, False), (4, True)):
        start.give(one.members.values(), workspace.dataset.window(window), delay=0)
        assert bool(one.members["finetune", 0].model.tower.given) == taken


def test_without_a_row_in_the_log_it_says_what_the_control_says(made, tmp_path: Path) -> None:
    one = run(made(log=TaeLog.Config().build(tmp_path / "empty")), STARTS)
    np.testing.assert_array_equal(logit(one, "finetune", STARTS), logit(one, "control", STARTS))


def test_a_killed_run_goes_on_with_the_same_bits(made) -> None:
    straight, killed = run(made("straight"), STARTS + 1), run(made("killed"), STARTS - 1)
    resumed = run(made("killed"), STARTS + 1)
    mine, theirs = (checkpoint.pack(one.state_dict()) for one in (resumed, straight))
    assert mine[1] == theirs[1] and tensors.digest(mine[0]) == tensors.digest(theirs[0])
    assert killed.run == resumed.run


def test_it_is_exported_and_costs_what_its_tower_costs(made, teacher: Teacher, tmp_path: Path) -> None:
    one = run(made(), 1)
    flops = one.flops(one.workspace.dataset.windows[0])
    shape = one.members["finetune", 0].model.config.tower
    tasks = len(one.workspace.inputs.tasks)
    layers = shape.inputs * shape.hidden + shape.hidden * shape.representation + shape.representation * tasks
    assert flops["finetune"] - flops["control"] == pytest.approx(2 * layers)
    one.export(tmp_path / "export")
    assert "model.tower.given" in tensors.load(tmp_path / "export" / "finetune" / "expert.safetensors")


def test_without_snapshots_the_arm_is_refused(made) -> None:
    with pytest.raises(ConfigError, match="arm 'finetune' starts from the foundation model's tower"):
        made(registry=None)
