"""What Ray is asked for, and GPUs that are not there."""

from pathlib import Path

import pytest
import ray
import torch

from foundation.sharded.config import Sharding
from hypercast.runtime import sharded, sharded_ray
from hypercast.runtime.config import PlatformConfig
from streaming.dataset import Dataset
from streaming.errors import ConfigError
from tests.hypercast.runtime.test_sharded import platform_of

CUDA = {"accelerator": "cuda", "deterministic": False}


def test_workers_ask_for_what_they_compute_on() -> None:
    cpu = sharded_ray.scaling_of(Sharding(workers=2), threads=3)
    assert (cpu.num_workers, cpu.use_gpu, cpu.resources_per_worker) == (2, False, {"CPU": 3})
    cuda = sharded_ray.scaling_of(Sharding(workers=2, accelerator="cuda"), threads=3)
    assert (cuda.num_workers, cuda.use_gpu, cuda.resources_per_worker) == (2, True, {"CPU": 3, "GPU": 1})
    assert (cpu.placement_strategy, cuda.placement_strategy) == ("PACK", "STRICT_PACK")


def test_a_machine_with_too_few_gpus_is_refused_before_ray_starts(
    tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    config = platform_of(tmp_path, tiny_dataset, **CUDA)
    with pytest.raises(ConfigError, match=r"sharding\.accelerator: cuda .* 2 workers, .* 1 are there"):
        sharded.train(config, lambda message, share: None)
    assert {piece.worker for piece in sharded.planned(config)} == {0, 1}  # the plan can be had without them


@pytest.mark.parametrize(("gpus", "fits"), [([1, 1], False), ([0, 2], True), ([], False)])
def test_a_cluster_must_have_a_machine_with_all_gpus(
    tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch, gpus: list[int], fits: bool
) -> None:
    """Of a dead machine nothing counts."""
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0} | ({"GPU": float(each)} if each else {})} for each in gpus]
    nodes.append({"Alive": False, "Resources": {"GPU": 8.0}})
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    config: PlatformConfig = platform_of(tmp_path, tiny_dataset, **CUDA)
    assert config.foundation.sharding is not None
    assert not sharded_ray.brings_ray(config)
    if fits:
        with sharded_ray.ray_for(config.foundation.sharding, config):
            return
    with (
        pytest.raises(ConfigError, match=r"a GPU for each of 2 workers, all in one machine"),
        sharded_ray.ray_for(config.foundation.sharding, config),
    ):
        pass
