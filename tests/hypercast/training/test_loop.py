"""The loop predicts before it trains, trains on no window twice, and resumes as if it had never stopped."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch

from hypercast.training import checkpoint
from hypercast.training.loop import ContinualTrainer
from streaming.dataset import Window

WINDOWS = [Window(index=index, start=index * 10, end=index * 10 + 10) for index in range(3, 7)]


class KilledError(Exception):
    """Stands for the end of the process."""


class FakeLearner:
    """Counts in a tensor; writes down what the loop calls; dies when told to."""

    def __init__(self, *, dies_at: tuple[str, int] | None = None, batches: int = 2) -> None:
        self.weight = torch.zeros(1)
        self.calls: list[str] = []
        self.dies_at = dies_at
        self.count = batches

    def _note(self, name: str, window: int) -> None:
        if self.dies_at == (name, window):
            raise KilledError
        self.calls.append(f"{name} {window}")

    def evaluate(self, window: Window) -> Mapping[str, float]:
        self._note("evaluate", window.index)
        return {"seen_before": self.weight.item()}

    def batches(self, window: Window) -> Iterator[int]:
        yield from [window.index] * self.count

    def step(self, batch: int) -> Mapping[str, float]:
        self._note("step", batch)
        self.weight += batch
        return {"loss": self.weight.item()}

    def finish(self, window: Window) -> Mapping[str, float]:
        self._note("finish", window.index)
        return {"finished": 1.0}

    def state_dict(self) -> dict[str, Any]:
        self.calls.append("state")
        return {"weight": self.weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls.append("load")
        self.weight = state["weight"].clone()


def trainer(path: Path, learner: FakeLearner, **config: int) -> ContinualTrainer[int]:
    return ContinualTrainer(config=ContinualTrainer.Config(**config), learner=learner, checkpoints=path)


def test_evaluate_then_steps_then_finish_then_checkpoint(tmp_path: Path) -> None:
    learner = FakeLearner()
    run = trainer(tmp_path, learner)
    for window in WINDOWS[:2]:
        run.run_window(window)
    per_window = ["evaluate {0}", "step {0}", "step {0}", "finish {0}", "state"]
    assert learner.calls == [call.format(index) for index in (3, 4) for call in per_window]
    assert checkpoint.load(tmp_path).tensors["weight"].item() == 2 * 3 + 2 * 4


def test_metrics_are_of_the_model_before_the_window(tmp_path: Path) -> None:
    run = trainer(tmp_path, FakeLearner())
    assert run.run_window(WINDOWS[0]) == {"seen_before": 0.0, "loss": (3 + 6) / 2, "finished": 1.0}
    assert run.run_window(WINDOWS[1]) == {"seen_before": 6.0, "loss": (10 + 14) / 2, "finished": 1.0}


def test_a_window_done_is_not_trained_twice(tmp_path: Path) -> None:
    learner = FakeLearner()
    run = trainer(tmp_path, learner)
    first = run.run_window(WINDOWS[0])
    run.run_window(WINDOWS[1])
    calls, weight = list(learner.calls), learner.weight.item()
    assert run.run_window(WINDOWS[0]) == first
    assert learner.calls == calls and learner.weight.item() == weight


def test_resume(tmp_path: Path) -> None:
    straight = trainer(tmp_path / "straight", FakeLearner())
    expected = [straight.run_window(window) for window in WINDOWS]

    before = trainer(tmp_path / "resumed", FakeLearner())
    assert before.cursor is None
    for window in WINDOWS[:2]:
        before.run_window(window)
    learner = FakeLearner()
    after = trainer(tmp_path / "resumed", learner)
    assert learner.calls == ["load"]
    assert after.cursor == WINDOWS[1].index
    assert [after.run_window(window) for window in WINDOWS] == expected
    assert "step 4" not in learner.calls and "evaluate 4" not in learner.calls


@pytest.mark.parametrize("place", ["evaluate", "step", "finish"])
def test_killed_anywhere(tmp_path: Path, place: str) -> None:
    straight = trainer(tmp_path / "straight", FakeLearner())
    expected = [straight.run_window(window) for window in WINDOWS]

    killed = trainer(tmp_path / "killed", FakeLearner(dies_at=(place, WINDOWS[2].index)))
    for window in WINDOWS[:2]:
        killed.run_window(window)
    with pytest.raises(KilledError):
        killed.run_window(WINDOWS[2])
    learner = FakeLearner()
    again = trainer(tmp_path / "killed", learner)
    assert again.cursor == WINDOWS[1].index
    assert [again.run_window(window) for window in WINDOWS] == expected
    assert learner.weight.item() == straight.learner.weight.item()  # type: ignore[attr-defined]


def test_killed_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, FakeLearner())
    run.run_window(WINDOWS[0])

    def die(*args: object, **kwargs: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.files, "write_text", die)  # before CURRENT moves
        with pytest.raises(KilledError):
            run.run_window(WINDOWS[1])
    again = trainer(tmp_path, FakeLearner())
    assert again.cursor == WINDOWS[0].index
    assert again.run_window(WINDOWS[1])["seen_before"] == 6.0


def test_no_way_back(tmp_path: Path) -> None:
    run = trainer(tmp_path, FakeLearner())
    run.run_window(WINDOWS[1])
    with pytest.raises(ValueError, match="window 3 was skipped: the learner has already trained on 4"):
        run.run_window(WINDOWS[0])


def test_epochs(tmp_path: Path) -> None:
    learner = FakeLearner()
    trainer(tmp_path, learner, epochs=3).run_window(WINDOWS[0])
    assert learner.calls == ["evaluate 3", *["step 3"] * 6, "finish 3", "state"]
    with pytest.raises(pydantic.ValidationError):
        ContinualTrainer.Config(epochs=0)


def test_a_window_without_batches(tmp_path: Path) -> None:
    learner = FakeLearner(batches=0)
    assert trainer(tmp_path, learner).run_window(WINDOWS[0]) == {"seen_before": 0.0, "finished": 1.0}
    assert trainer(tmp_path, FakeLearner()).cursor == 3
