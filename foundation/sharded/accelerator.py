"""On what workers compute and through what they talk: CPUs and gloo, or GPUs and nccl, by the same code.

Everything but this module takes the device that it is given. What lies in main memory on either (counters,
vocabularies, what the leader puts together) travels by gloo; what lies on a GPU travels by nccl.

``cuda`` has run with one worker on one GPU; several have not (docs/sharded.md).
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.sharded.config import Accelerator
from streaming.errors import ConfigError

ValueT = TypeVar("ValueT")

BACKENDS: dict[Accelerator, str] = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""torch's names for it; with two of them, each tensor goes by that of its device."""


def resources(accelerator: Accelerator, *, threads: int) -> dict[str, float]:
    """What Ray keeps for one worker: ``threads`` CPUs and, on GPUs, one."""
    return {"CPU": threads} if accelerator == "cpu" else {"CPU": threads, "GPU": 1}


def require(accelerator: Accelerator, *, workers: int, gpus: int) -> None:
    """Raise ConfigError unless each of ``workers`` has its own of the ``gpus`` that one machine offers."""
    if accelerator == "cuda" and gpus < workers:
        raise ConfigError(
            f"sharding.accelerator: cuda needs a GPU for each of {workers} workers, all in one machine, and {gpus} are "
            f"there. Give {f'workers: {gpus} or ' if gpus else ''}accelerator: cpu"
        )


def device_of(accelerator: Accelerator, index: int) -> torch.device:
    """The device of the ``index``-th worker on this machine, which torch then takes for the current one.

    Raises:
        ConfigError: there is no such GPU.
    """
    if accelerator == "cpu":
        return torch.device("cpu")
    require(accelerator, workers=index + 1, gpus=torch.cuda.device_count())
    device = torch.device(accelerator, index)
    torch.cuda.set_device(device)
    return device


def made_on(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, tensors that a model makes without saying where lie on ``device``."""
    # A default device costs every call of torch a look; on a CPU it would change nothing.
    return nullcontext() if device.type == "cpu" else device


def moved(value: ValueT, device: torch.device) -> ValueT:
    """``value`` with the tensors in it on ``device``, through data classes, dicts and lists; itself on a CPU."""
    return value if device.type == "cpu" else _moved(value, device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor | KeyedJaggedTensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _moved(each, device) for key, each in value.items()}
    if isinstance(value, list):
        return [_moved(each, device) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _moved(getattr(value, each.name), device) for each in fields(value)})
    return value
