"""HSTU attention for CPUs: fused C++ kernels over jagged sequences, compiled for this machine on first use.

Scores are computed a block of 64 x 64 at a time by oneDNN's block products (``at::native::cpublas::brgemm``), biased,
activated, masked and multiplied while they are in the cache; what the mask hides altogether is skipped, and no matrix
of the size of a sequence ever exists. Work is shared out by sequence, head and block, in parts that do not depend on
the number of threads: neither do results, to the bit.

bfloat16 needs a CPU with AMX or AVX512-BF16; elsewhere it is computed in float32 and rounded at the end.
"""

import functools

import torch
from torch import Tensor

from foundation.hstu.attention.cpu.build import BuildError, compiled
from foundation.hstu.attention.semantics import time_thresholds


@functools.cache
def unavailable() -> str | None:
    """Why the kernels cannot run here, or None if they can. Compiles them if that was not done before."""
    try:
        torch.ops.load_library(compiled())
    except (BuildError, OSError) as error:
        return str(error)
    return None


def forward(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    num_targets: Tensor,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    timestamps: Tensor | None,
    max_seq_len: int,
    contextual_len: int,
    max_distance: int | None,
    full_tail: int,
    scale: float,
) -> Tensor:
    """See :func:`foundation.hstu.attention.operator.attention`."""
    _require()
    tables = (position_bias, time_bias, _thresholds(time_bias))
    no_cache = (None, None, None, None)
    numbers = (max_seq_len, contextual_len, max_distance, full_tail, scale)
    dtype = _compute_dtype(q_THD.dtype)
    out_THV = torch.ops.hypercast_cpu.forward(
        *_in(dtype, q_THD, k_THD, v_THV), offsets, num_targets, *tables, timestamps, *no_cache, *numbers
    )
    return out_THV.to(v_THV.dtype)


def cached(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    k_cache_SHD: Tensor,
    v_cache_SHV: Tensor,
    cache_offsets: Tensor,
    num_targets: Tensor,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    timestamps: Tensor | None,
    cache_timestamps: Tensor | None,
    max_seq_len: int,
    contextual_len: int,
    max_distance: int | None,
    full_tail: int,
    scale: float,
) -> Tensor:
    """See :func:`foundation.hstu.attention.operator.attention_cached`."""
    _require()
    tables = (position_bias, time_bias, _thresholds(time_bias))
    numbers = (max_seq_len, contextual_len, max_distance, full_tail, scale)
    dtype = _compute_dtype(q_THD.dtype)
    cache = (*_in(dtype, k_cache_SHD, v_cache_SHV), cache_offsets, cache_timestamps)
    out_THV = torch.ops.hypercast_cpu.forward(
        *_in(dtype, q_THD, k_THD, v_THV), offsets, num_targets, *tables, timestamps, *cache, *numbers
    )
    return out_THV.to(v_THV.dtype)


def backward(
    grad_THV: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    num_targets: Tensor,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    timestamps: Tensor | None,
    max_seq_len: int,
    contextual_len: int,
    max_distance: int | None,
    full_tail: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`foundation.hstu.attention.operator.attention_backward`."""
    _require()
    tables = (position_bias, time_bias, _thresholds(time_bias))
    numbers = (max_seq_len, contextual_len, max_distance, full_tail, scale)
    dtype = _compute_dtype(q_THD.dtype)
    dq, dk, dv, dposition, dtime = torch.ops.hypercast_cpu.backward(
        *_in(dtype, grad_THV, q_THD, k_THD, v_THV), offsets, num_targets, *tables, timestamps, *numbers
    )
    dq, dk, dv = _in(q_THD.dtype, dq, dk, dv)
    return dq, dk, dv, dposition, dtime


def _require() -> None:
    reason = unavailable()
    if reason is not None:
        raise RuntimeError(f"the compiled attention kernels cannot run here: {reason}")


def _thresholds(time_bias: Tensor | None) -> Tensor | None:
    return None if time_bias is None else time_thresholds(len(time_bias))


@functools.cache
def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or float32 in place of bfloat16 on a CPU that cannot multiply it."""
    multiplies = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.float32 if dtype == torch.bfloat16 and not multiplies else dtype


def _in(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    return [tensor.to(dtype) for tensor in tensors]
