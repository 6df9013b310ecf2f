"""Named tensors on disk (safetensors) and their content digest."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` to ``path``: any dtype that safetensors knows, any shape, from any device.

    Tensors that share memory are written each in full, and are read back as separate tensors.
    """
    seen: set[int] = set()
    ready: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # The format refuses two names for one memory.
        ready[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    save_file(ready, path)


def load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that :func:`save` wrote, on the CPU."""
    return load_file(path)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 of names, dtypes, shapes and bytes; independent of order, device and memory layout."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
