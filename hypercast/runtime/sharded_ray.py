"""What sharded training asks of Ray: workers, what each of them needs, and a cluster that has it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from foundation.sharded import accelerator
from foundation.sharded.config import Sharding
from hypercast.runtime.config import PlatformConfig


def scaling_of(sharding: Sharding, *, threads: int) -> Any:
    """What Ray Train is asked for, a ``ScalingConfig``: workers with GPUs come in one machine or not at all."""
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=sharding.workers,
        resources_per_worker=accelerator.resources(sharding.accelerator, threads=threads),
        use_gpu=sharding.accelerator == "cuda",
        placement_strategy="PACK" if sharding.accelerator == "cpu" else "STRICT_PACK",
    )


@contextmanager
def ray_for(sharding: Sharding, config: PlatformConfig) -> Iterator[None]:
    """Inside, Ray is there: the one that runs already, the cluster of ``ray.address``, or one of this machine.

    Raises:
        ConfigError: it has too few GPUs.
    """
    import ray

    if ray.is_initialized():
        _require_gpus(sharding)
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if config.ray.address is not None:
        options |= {"address": config.ray.address}
    elif brings_ray(config):
        cpus = max(os.cpu_count() or 1, sharding.workers * config.threads)
        store = config.ray.object_store_mib * 2**20
        options |= {"address": "local", "num_cpus": cpus, "object_store_memory": store, "include_dashboard": False}
        if sharding.accelerator == "cuda":
            options |= {"num_gpus": torch.cuda.device_count()}
    ray.init(**options)
    try:
        _require_gpus(sharding)
        yield
    finally:
        ray.shutdown()


def brings_ray(config: PlatformConfig) -> bool:
    """Whether the run starts a Ray of its own, on this machine."""
    import ray

    return config.ray.address is None and "RAY_ADDRESS" not in os.environ and not ray.is_initialized()


def _require_gpus(sharding: Sharding) -> None:
    """Raise ConfigError unless one of Ray's machines has a GPU for each worker: for a missing one, Ray would wait."""
    import ray

    gpus = max((int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
    accelerator.require(sharding.accelerator, workers=sharding.workers, gpus=gpus)
