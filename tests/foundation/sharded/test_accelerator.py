"""What can be shown without a GPU: the plan for GPUs, what is asked for, what is moved, and what is refused.

The device ``meta`` stands in for a GPU: tensors on it have a place and no values.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.sharded import plan
from foundation.sharded.accelerator import BACKENDS, device_of, made_on, moved, require, resources
from foundation.sharded.config import Accelerator, Sharding
from foundation.sharded.model import DenseModel
from streaming.batch import keyed
from streaming.dataset import Dataset
from streaming.errors import ConfigError
from streaming.workspace import Workspace
from tests.foundation.sharded.workers import Setting

META = torch.device("meta")


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise", "data_parallel"])
def test_a_plan_is_made_for_either_device(accelerator: Accelerator, kind: str) -> None:
    """Within the budget of a worker, without a worker and without a GPU; pieces lie on the workers' devices."""
    tables = {"items/id": 1000, "users/id": 50}
    collection = plan.collection_of(tables, width=16, learning_rate=0.1)
    sharding = Sharding(workers=2, accelerator=accelerator, kinds=[kind], memory_mib=1.0)  # type: ignore[list-item]
    device = torch.device(accelerator)
    proposed = plan.propose(collection, sharding, batch_size=8, device=device)
    pieces = plan.pieces(proposed, collection)
    assert {each.kind for each in pieces} == {kind} and {each.worker for each in pieces} <= {0, 1}
    copies = 2 if kind == "data_parallel" else 1
    for name, rows in tables.items():
        assert sum(each.rows * each.columns for each in pieces if each.table == name) == copies * rows * 16
        assert sum(each.rows * each.columns for each in pieces if each.table == name and each.speaks) == rows * 16
    module = proposed.get_plan_for_module("")
    placed = [shard.placement for each in module.values() if each.sharding_spec for shard in each.sharding_spec.shards]  # type: ignore[union-attr]
    assert all(each.device().type == accelerator for each in placed) and bool(placed) == (kind != "data_parallel")
    with pytest.raises(ConfigError, match=r"sharding\.memory_mib: 0\.01 a worker"):
        plan.propose(collection, sharding.model_copy(update={"memory_mib": 0.01}), batch_size=8, device=device)


def test_a_gpu_each_in_one_machine_or_a_clear_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    require("cpu", workers=8, gpus=0)
    require("cuda", workers=2, gpus=2)
    with pytest.raises(ConfigError, match=r"a GPU for each of 2 workers, .* 0 are there\. Give accelerator: cpu"):
        require("cuda", workers=2, gpus=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"2 workers, .* and 1 are there\. Give workers: 1 or accelerator: cpu"):
        device_of("cuda", 1)
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert device_of("cuda", 0) == torch.device("cuda:0") and chosen == [torch.device("cuda:0")]
    assert device_of("cpu", 3) == torch.device("cpu")


def test_what_is_asked_for_follows_from_the_accelerator() -> None:
    assert BACKENDS == {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
    assert resources("cpu", threads=2) == {"CPU": 2}
    assert resources("cuda", threads=2) == {"CPU": 2, "GPU": 1}


@dataclass(frozen=True, kw_only=True)
class Held:
    tensors: list[Tensor]
    ids: KeyedJaggedTensor
    by_name: dict[str, Tensor | np.ndarray]
    counts: tuple[int, int]


def test_all_tensors_are_moved_and_nothing_else_is_touched() -> None:
    held = Held(
        tensors=[torch.ones(2)],
        ids=keyed(["a"], np.array([[1], [2]])),
        by_name={"tensor": torch.ones(3), "array": np.arange(3)},
        counts=(1, 2),
    )
    assert moved(held, torch.device("cpu")) is held
    there = moved({"held": [held]}, META)["held"][0]
    assert isinstance(there, Held) and there.counts == (1, 2) and there.by_name["array"] is held.by_name["array"]
    assert {there.tensors[0].device, there.ids.values().device, there.by_name["tensor"].device} == {META}
    assert there.ids.keys() == ["a"] and there.ids.stride() == 2 and held.tensors[0].device.type == "cpu"


def test_a_model_lies_where_it_computes_but_its_vocabulary(
    tiny_dataset: Dataset, workspace: Workspace, tmp_path: Path
) -> None:
    config = Setting(run=tmp_path, data=tiny_dataset.path, sharding={}, windows=1).config(1).model
    model = DenseModel(config=config, inputs=workspace.inputs, seed=0, device=META)
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    places = {name: tensor.device.type for name, tensor in held.items()}
    assert {place for name, place in places.items() if name.startswith("vocabulary.")} == {"cpu"}
    assert {place for name, place in places.items() if not name.startswith("vocabulary.")} == {"meta"}
    constants = [value for value in vars(model.delayed).values() if isinstance(value, Tensor)]
    assert constants and all(each.device == META for each in constants)
    with made_on(META):
        assert torch.arange(3).device == META
    with made_on(torch.device("cpu")):
        assert torch.arange(3).device.type == "cpu"
