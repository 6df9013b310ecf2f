"""Training in bfloat16: products are rounded, weights and what is learned are not."""

from pathlib import Path

import torch

from foundation.model import FoundationModel
from foundation.publish import Publisher
from foundation.steps import FoundationLearner
from hypercast.registry import Registry
from hypercast.store.tae_log import TaeLog
from streaming.workspace import Workspace


def losses(folder: Path, workspace: Workspace, small: FoundationModel.Config, precision: str) -> list[float]:
    publisher = Publisher(
        config=Publisher.Config(),
        model=small,
        workspace=workspace,
        registry=Registry(folder / "registry"),
        log=TaeLog.Config().build(folder / "log"),
    )
    config = FoundationLearner.Config(batch_size=40, model=small, precision=precision)
    learner = FoundationLearner(config=config, workspace=workspace, publisher=publisher, seed=0)
    seen = [
        learner.step(batch)["train_loss"]
        for window in (0, 1)
        for batch in learner.batches(workspace.dataset.windows[window])
    ]
    assert all(parameter.dtype == torch.float32 for parameter in learner.model.parameters())
    return seen


def test_bfloat16_follows_float32_closely_but_not_exactly(
    tmp_path: Path, workspace: Workspace, small: FoundationModel.Config
) -> None:
    full = losses(tmp_path / "full", workspace, small, "float32")
    half = losses(tmp_path / "half", workspace, small, "bfloat16")
    assert half != full
    torch.testing.assert_close(half, full, rtol=0.03, atol=0.0)
