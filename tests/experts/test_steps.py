"""All arms of one surface: predict first, then train on the same batches, and go on after a kill with the same bits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from experts import steps
from experts.arms import ARMS
from experts.export import export_expert
from experts.steps import SurfaceLearner
from hypercast import tensors
from hypercast.store.tae_log import TaeLog
from hypercast.training import checkpoint
from hypercast.training.loop import ContinualTrainer
from streaming.dataset import Window
from streaming.errors import ConfigError
from streaming.requests import Requests, Supervision
from streaming.workspace import Workspace
from transfer import predictions
from transfer.gain import FM_HEAD

SURFACE = "surface_1"
MakeLearner = Callable[..., SurfaceLearner]


@pytest.fixture
def windows(workspace: Workspace) -> list[Window]:
    """Those that the log covers."""
    return workspace.dataset.windows[:3]


def trainer(made: SurfaceLearner) -> ContinualTrainer:
    return ContinualTrainer(
        config=ContinualTrainer.Config(), learner=made, checkpoints=made.run / "checkpoints" / SURFACE
    )


def train(made: SurfaceLearner, window: Window) -> None:
    for batch in made.batches(window):
        made.step(batch)


def packed(made: SurfaceLearner) -> tuple[dict[str, Tensor], object]:
    found, skeleton = checkpoint.pack(made.state_dict())
    return {name: tensor.clone() for name, tensor in found.items()}, skeleton


def assert_same(mine: tuple[dict[str, Tensor], object], theirs: tuple[dict[str, Tensor], object]) -> None:
    assert mine[1] == theirs[1]
    assert tensors.digest(mine[0]) == tensors.digest(theirs[0])


def predicted(made: SurfaceLearner, window: Window) -> pa.Table:
    return predictions.read(made.run, surface=SURFACE, window=window.index)


def test_predictions_are_written_before_training(learner: MakeLearner, windows: list[Window]) -> None:
    made = learner()
    written: list[bool] = []
    step = made.step

    def watched(batch: object) -> object:
        written.append(predictions.path_of(made.run, SURFACE, windows[0].index).is_file())
        return step(batch)  # type: ignore[arg-type]

    made.step = watched  # type: ignore[method-assign,assignment]
    trainer(made).run_window(windows[0])
    assert len(written) > 1 and all(written)


def test_a_window_is_predicted_with_what_was_learned_before_it(learner: MakeLearner, windows: list[Window]) -> None:
    run = trainer(learner())
    for window in windows[:2]:
        run.run_window(window)
    twin = learner("twin")
    twin.evaluate(windows[0])
    train(twin, windows[0])
    twin.evaluate(windows[1])
    for window in windows[:2]:
        assert predicted(twin, window).equals(predicted(learner(), window))
    train(twin, windows[1])
    before = predicted(twin, windows[1])
    twin.evaluate(windows[1])
    assert not predicted(twin, windows[1]).equals(before)


@dataclass(frozen=True)
class Scrambled(Workspace):
    """Another history of outcomes: labels, weights and strata of one window are noise."""

    window: int = 0

    def requests(self, window: int) -> Requests:
        requests = super().requests(window)
        if window != self.window:
            return requests
        random, supervision = np.random.default_rng(0), requests.supervision
        noise = Supervision(
            label=random.integers(0, 2, supervision.label.shape).astype(np.float32),
            known_time=random.permutation(supervision.known_time),
            weight=random.random(len(supervision.weight), dtype=np.float32),
            stratum=random.integers(0, 9, len(supervision.stratum)).astype(np.int8),
        )
        return replace(requests, supervision=noise)


def test_the_outcome_of_a_window_does_not_change_its_predictions(learner: MakeLearner, windows: list[Window]) -> None:
    honest = learner("honest")
    other = learner("other", on=Scrambled(honest.workspace.dataset, window=windows[1].index))
    for made in (honest, other):
        run = trainer(made)
        for window in windows:
            run.run_window(window)
    names = [name for name in predicted(honest, windows[0]).column_names if name.startswith("p_")]
    for window, same in zip(windows, (True, True, False), strict=True):
        mine, theirs = (predicted(made, window).select(names) for made in (honest, other))
        assert mine.equals(theirs) == same


def test_evaluate_changes_no_state(learner: MakeLearner, windows: list[Window]) -> None:
    made = learner()
    train(made, windows[0])
    before = packed(made)
    made.evaluate(windows[1])
    assert_same(packed(made), before)
    made.evaluate(windows[2])
    assert_same(packed(made), before)
    twin = learner("twin")
    train(twin, windows[0])
    for one in (made, twin):
        train(one, windows[1])
    assert_same(packed(made), packed(twin))


def test_all_arms_see_the_same_batches(learner: MakeLearner, windows: list[Window]) -> None:
    made = learner()
    assert list(made.members) == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    seen: dict[tuple[str, int], list[tuple[int, ...]]] = {key: [] for key in made.members}
    for key, member in made.members.items():
        member.model.register_forward_pre_hook(
            lambda module, arguments, key=key: seen[key].append(tuple(id(value) for value in arguments))
        )
    batches = list(made.batches(windows[0]))
    for batch in batches:
        losses = made.step(batch)
        assert losses.keys() == {f"{arm}.seed{seed}/train_loss" for arm in ARMS for seed in (0, 1)}
    assert len(batches) > 1
    for key, member in made.members.items():
        expected = [tuple(id(value) for value in batch.read_by(member.model)) for batch in batches]
        assert seen[key] == expected


def test_arms_look_up_only_items_that_they_read(learner: MakeLearner, windows: list[Window]) -> None:
    made = learner()
    train(made, windows[0])
    batch = next(iter(made.batches(windows[1])))
    control = made.members["control", 0].model
    requests, slots, _ = batch.read_by(control)
    assert list(requests.history) == ["surface"]
    named = torch.cat([requests.item_C, requests.history["surface"].item_L])
    assert named.unique().tolist() == list(range(slots.counts[0]))
    assert slots.counts[0] < batch.slots.counts[0]
    control.eval()
    assert control(requests, slots, batch.teacher).logit_CT.equal(
        control(batch.requests, batch.slots, batch.teacher).logit_CT
    )


def test_arms_start_from_the_same_values_and_seeds_do_not(learner: MakeLearner) -> None:
    weight = {key: member.model.attention.query.weight for key, member in learner().members.items()}
    assert all(weight[arm, seed].equal(weight["control", seed]) for arm in ARMS for seed in (0, 1))
    assert not weight["control", 0].equal(weight["control", 1])


def test_every_arm_learns(learner: MakeLearner, windows: list[Window]) -> None:
    made = learner()
    before = packed(made)[0]
    train(made, windows[0])
    after = packed(made)[0]
    for arm in ARMS:
        assert not before[f"members/{arm}.seed0/model/heads.weight"].equal(
            after[f"members/{arm}.seed0/model/heads.weight"]
        )


def test_a_checkpoint_continues_bit_identically(learner: MakeLearner, windows: list[Window]) -> None:
    straight, killed = learner("straight"), learner("killed")
    run = trainer(straight)
    metrics = [run.run_window(window) for window in windows]

    trainer(killed).run_window(windows[0])
    trainer(killed).run_window(windows[1])  # a new trainer over the same learner resumes too
    resumed = learner("killed")
    again = trainer(resumed)
    assert_same(packed(resumed), packed(killed))
    assert [again.run_window(window) for window in windows] == metrics
    assert_same(packed(resumed), packed(straight))
    for window in windows:
        assert predicted(resumed, window).equals(predicted(straight, window))


def test_the_prediction_table(learner: MakeLearner, windows: list[Window], workspace: Workspace) -> None:
    made, window = learner(), windows[1]
    told = made.evaluate(window)
    table = predicted(made, window)
    requests = workspace.requests(window.index).on_surface(1)
    owner = requests.owner
    assert table["request_id"].to_pylist() == requests.request_id[owner].tolist()
    assert table["candidate_id"].to_pylist() == requests.candidate_id.tolist()
    assert table["user_id"].to_pylist() == requests.user_id[owner].tolist()
    assert table["time"].cast(pa.int64()).to_pylist() == requests.time[owner].tolist()
    assert table["tag_split_trip"].to_pylist() == requests.tags["split_trip"][owner].tolist()
    purchase = requests.supervision.label[:, 0]
    assert table["label_purchase"].to_pylist() == purchase.tolist()
    multiple = requests.supervision.label[:, 1].tolist()
    assert table["label_multiple"].to_pylist() == [
        value if bought else None for value, bought in zip(multiple, purchase, strict=True)
    ]
    arms = {column.arm for column in predictions.columns_of(table.column_names, task="multiple")}
    assert arms == {*ARMS, FM_HEAD}
    for name in table.column_names:
        if name.startswith("p_"):
            assert 0 < min(table[name].to_pylist()) <= max(table[name].to_pylist()) < 1
    coverage = {"coverage/fresh": 1.0, "coverage/stale": 0.0, "coverage/expired": 0.0, "coverage/miss": 0.0}
    assert told["teacher/age_hours"] > 0
    rates = made.vocabulary.collision_rates(made.reader, requests)
    assert told == {**coverage, **rates, "teacher/age_hours": told["teacher/age_hours"]}


def test_the_head_of_the_foundation_model_is_what_it_logged(
    learner: MakeLearner, windows: list[Window], log: TaeLog
) -> None:
    made, window = learner(), windows[1]
    made.evaluate(window)
    table = predicted(made, window)
    segment = log.segment("FM@0002", window.index).table.to_pandas()
    logit = segment.set_index(["request_id", "candidate_id"])["teacher_logit_purchase"]
    keys = list(zip(table["request_id"].to_pylist(), table["candidate_id"].to_pylist(), strict=True))
    expected = torch.sigmoid(torch.from_numpy(logit.loc[keys].to_numpy(copy=True)))
    np.testing.assert_allclose(table[f"p_purchase.{FM_HEAD}.seed0"].to_numpy(), expected, rtol=1e-6)


def test_each_candidate_gets_its_own_row_of_the_log(learner: MakeLearner, windows: list[Window], log: TaeLog) -> None:
    window = windows[1]
    segment = log.segment("FM@0002", window.index).table.to_pandas()
    logit = segment.set_index(["request_id", "candidate_id"])["teacher_logit_multiple"]
    made = learner()
    requests = made.workspace.requests(window.index).on_surface(1)
    keys = list(zip(requests.request_id[requests.owner].tolist(), requests.candidate_id.tolist(), strict=True))
    given = torch.cat([batch.teacher.logit_CT for batch in made.batches(window)])
    assert given[:, 1].tolist() == logit.loc[keys].tolist()


def test_no_gradient_reaches_what_the_teacher_logged(learner: MakeLearner, windows: list[Window]) -> None:
    made = learner()
    for batch in made.batches(windows[0]):
        given = [batch.teacher.logit_CT, batch.teacher.present_C]
        given += [tensor for each in batch.teacher.vectors.values() for tensor in (each.vector_CR, each.present_C)]
        before = [tensor.clone() for tensor in given]
        made.step(batch)
        assert all(not tensor.requires_grad and tensor.grad is None for tensor in given)
        assert all(tensor.equal(old) for tensor, old in zip(given, before, strict=True))


def test_without_a_log_every_key_is_a_miss(learner: MakeLearner, windows: list[Window], tmp_path: Path) -> None:
    """Arms that live on embeddings alone then say what they say of a zero; ``logit_residual`` is ``control``."""
    made = learner("missing", log=TaeLog.Config().build(tmp_path / "empty"))
    assert made.evaluate(windows[0])["coverage/miss"] == 1.0
    table = predicted(made, windows[0])
    assert table["p_purchase.control.seed0"].equals(table["p_purchase.logit_residual.seed0"])
    train(made, windows[0])
    for batch in made.batches(windows[0]):
        assert not batch.teacher.present_C.any() and not batch.teacher.vectors["penultimate"].vector_CR.any()


def test_arms_do_not_disturb_each_other(learner: MakeLearner, windows: list[Window]) -> None:
    """Whatever runs beside them, arms with the same seed say the same, bit by bit."""
    alone = {arm: learner(arm, arms=[arm]) for arm in ("control", "kd", "tae_aux_head_adapter", "tae_history")}
    beside = learner("beside", arms=["control", "aux_head", "kd", "tae_history", "tae_aux_head_adapter"])
    for made in (*alone.values(), beside):
        run = trainer(made)
        for window in windows:
            run.run_window(window)
    together = predicted(beside, windows[2])
    for arm, made in alone.items():
        name = f"p_purchase.{arm}.seed1"
        assert predicted(made, windows[2])[name].equals(together[name])


def test_arms_with_adapter_and_history_continue_bit_identically(learner: MakeLearner, windows: list[Window]) -> None:
    arms = ["tae_aux_head_adapter", "tae_history"]
    straight, killed = learner("straight", arms=arms), learner("killed", arms=arms)
    for window in windows:
        trainer(straight).run_window(window)
    for window in windows[:2]:
        trainer(killed).run_window(window)
    resumed = learner("killed", arms=arms)
    trainer(resumed).run_window(windows[2])
    assert_same(packed(resumed), packed(straight))
    assert predicted(resumed, windows[2]).equals(predicted(straight, windows[2]))


def test_an_arm_whose_embedding_has_no_width_is_refused(learner: MakeLearner) -> None:
    with pytest.raises(ConfigError, match=r"read \['user'\], whose width is not known.*encoding="):
        learner(arms=["user_embedding"])


def test_an_export_that_is_cut_short_is_none(
    learner: MakeLearner, windows: list[Window], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever serves would find the control alone, and serve that."""
    made, folder = learner(), tmp_path / "export" / "window=00001"
    written: list[Path] = []

    def cut(path: Path, **parts: Any) -> None:
        export_expert(path, **parts)
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(steps, "export_expert", cut)
    with pytest.raises(KeyboardInterrupt):
        made.export(folder)
    assert len(written) == 2 and not folder.exists()
    monkeypatch.undo()
    made.export(folder)
    assert {path.name for path in folder.iterdir()} == set(ARMS)


def test_a_part_of_an_export_is_made_whole(learner: MakeLearner, tmp_path: Path) -> None:
    made, folder = learner(), tmp_path / "window=00001"
    for name in ("control", ".treated.partial"):
        (folder / name).mkdir(parents=True)
    made.export(folder)
    assert {path.name for path in folder.iterdir()} == set(ARMS)
    assert (folder / "control" / "expert.safetensors").is_file()
