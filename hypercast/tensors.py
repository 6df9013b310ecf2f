"""Named tensors as safetensors, in files and in memory, and digests of their contents."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` to ``path``: any dtype that safetensors knows, any shape, from any device.

    Tensors that share memory are written each in full, and are read back as separate tensors.
    """
    safetensors.torch.save_file(_separate(tensors), path)


def load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that :func:`save` wrote, on the CPU."""
    return safetensors.torch.load_file(path)


def dump(tensors: Mapping[str, Tensor]) -> bytes:
    """What :func:`save` writes; the same bytes for the same tensors."""
    return safetensors.torch.save(_separate(tensors))


def parse(data: bytes) -> dict[str, Tensor]:
    """The tensors that :func:`dump` was given, in memory of their own."""
    return safetensors.torch.load(data)


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """By name the hexadecimal SHA-256 of dtype, shape and bytes; independent of device and memory layout."""
    return {name: _digest_of(tensor) for name, tensor in tensors.items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 of names, dtypes, shapes and bytes; independent of order, device and memory layout."""
    return digest_of_digests(digests(tensors))


def digest_of_digests(by_name: Mapping[str, str]) -> str:
    """:func:`digest` from what :func:`digests` gave."""
    state = hashlib.sha256()
    for name in sorted(by_name):
        state.update(f"{name}\0{by_name[name]}\0".encode())
    return state.hexdigest()


def row_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes [N, B] of a tensor [N, ...] that is not empty, row by row; shares memory with it where it can."""
    rows = tensor.detach().cpu().contiguous()
    return rows.reshape(len(rows), -1).view(torch.uint8).numpy()


def _digest_of(tensor: Tensor) -> str:
    tensor = tensor.detach().cpu().contiguous()
    state = hashlib.sha256(f"{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU and in one piece each; the format refuses two names for one memory."""
    seen: set[int] = set()
    ready: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        ready[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return ready
