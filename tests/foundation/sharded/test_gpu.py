"""Training on a GPU through the code that trains on CPUs: the losses of one CPU worker, whatever is sharded how.

Skipped where there is no GPU, or where the packages installed are the CPU builds.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from foundation.hstu.embedding import FeatureEmbedding, RowWiseAdagrad
from foundation.hstu.vocabulary import Slots
from foundation.sharded.processes import start
from streaming.dataset import Dataset
from tests.foundation.sharded.workers import Setting, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

NEAR = 1e-4
"""Losses of a GPU against a CPU's, relative: sums are added in other orders, and so are those of every step before."""


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("cpu"), tiny_dataset, accelerator="cpu")


def run(folder: Path, dataset: Dataset, *, accelerator: str = "cuda", windows: int = 4, **sharding: Any) -> dict:
    said = {"accelerator": accelerator, **sharding}
    # Without dropout: masks are drawn where they are used, and a GPU draws others.
    setting = Setting(run=folder, data=dataset.path, sharding=said, windows=windows, rows=16, dropout=0.0)
    return start(1, train, setting, accelerator=accelerator)[0]


@pytest.mark.parametrize(
    ("sharding", "tolerance"),
    [
        ({}, NEAR),
        ({"shards": 3}, NEAR),
        ({"dense": "fsdp2"}, NEAR),
        ({"overlap": False}, NEAR),
        ({"kinds": ["row_wise"]}, NEAR),
        ({"kinds": ["data_parallel"]}, NEAR),
        ({"kinds": ["column_wise"]}, 2e-2),
        ({"vectors": "float16"}, 1e-3),
        ({"gradients": "bfloat16"}, 1e-2),
    ],
    ids=str,
)
def test_losses_are_those_of_a_cpu(
    tmp_path: Path, tiny_dataset: Dataset, cpu: dict[str, Any], sharding: dict[str, Any], tolerance: float
) -> None:
    found = run(tmp_path, tiny_dataset, **sharding)
    assert found["losses"] == pytest.approx(cpu["losses"], rel=tolerance)
    assert len(found["losses"]) > 4 and found["snapshot"] == cpu["snapshot"]


@pytest.mark.parametrize(("first", "then"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_checkpoints_go_from_one_to_the_other(
    tmp_path: Path, tiny_dataset: Dataset, cpu: dict[str, Any], first: str, then: str
) -> None:
    begun = run(tmp_path, tiny_dataset, accelerator=first, windows=2)
    rest = run(tmp_path, tiny_dataset, accelerator=then)
    assert rest["begun"] == max(begun["metrics"])
    assert begun["losses"] + rest["losses"] == pytest.approx(cpu["losses"], rel=NEAR)


def test_a_table_learns_as_on_a_cpu() -> None:
    """The look-up and the update in its backward pass, of rows asked for once, twice and never."""
    slots = Slots(row_I=torch.tensor([3, 1, 3, 0, 4]), offsets=torch.tensor([0, 2, 4, 5]), evicted=torch.tensor([2]))
    found: dict[str, list[torch.Tensor]] = {}
    for name in ("cpu", "cuda"):
        with torch.device(name):
            embedding = FeatureEmbedding(rows=6, width=8)
            direction_ND = torch.arange(24.0).view(3, 8)
        RowWiseAdagrad([embedding], learning_rate=0.1)
        for _ in range(3):
            (embedding(slots) * direction_ND).sum().backward()
        with torch.no_grad():
            found[name] = [embedding.weight.detach().cpu(), embedding.squares.cpu(), embedding(slots).cpu()]
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert found["cpu"][0].abs().sum() > 0
