"""HSTU attention for GPUs: the launches of the Triton kernels next door, behind the operators' arguments.

Proven in the interpreter (``TRITON_INTERPRET=1``, against float64), by ahead-of-time compilation for sm_80, sm_90 and
sm_100, and on an H100 (sm_90), where they were timed too: docs/engine.md.

float32 is multiplied exactly as long as ``torch.get_float32_matmul_precision()`` is ``highest``, its default, and in
TF32 otherwise. Which block sizes are fastest is timed once per widths, dtype and machine, and remembered on disk; under
``torch.use_deterministic_algorithms(True)`` nothing is timed and the first of the table is taken. Either way the same
blocks give the same bits: there are no atomics.

Shape legend: T tokens of all sequences, S stored tokens, H heads, D width of queries and keys, V width of values,
P and K entries of the tables by position and by time, G programs.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from foundation.hstu.attention.semantics import time_thresholds
from foundation.hstu.attention.triton_kernels import tuning
from foundation.hstu.attention.triton_kernels.interpreter import interpreted, repair_bfloat16

OLDEST = (8, 0)
"""Compute capability of the oldest GPU that the kernels are written for."""
WIDEST = tuning.WIDTHS[-1]
"""Of queries, keys and values: a tile must fit into registers."""
PROGRAMS = 4 if interpreted() else 512
"""How many programs, each with tables of its own, add up the gradients of the tables."""
NO_CACHE = {
    "k_cache_ptr": None,
    "k_cache_stride": None,
    "k_cache_head": None,
    "v_cache_ptr": None,
    "v_cache_stride": None,
    "v_cache_head": None,
    "cache_time_ptr": None,
    "cache_offsets_ptr": None,
}

if interpreted():
    repair_bfloat16()


def unavailable() -> str | None:
    """Why the kernels cannot run here, or None if they can."""
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "no CUDA device; without one the kernels run in Triton's interpreter only (TRITON_INTERPRET=1)"
    if torch.cuda.get_device_capability() < OLDEST:
        return "the GPU is older than sm_80, which the kernels are written for"
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
    """``[T, H, V]``; the arguments are those of :func:`foundation.hstu.attention.operator.attention`."""
    shared = _shared(
        q_THD, k_THD, v_THV, offsets, num_targets, position_bias, time_bias, timestamps,
        contextual_len, max_distance, full_tail, scale,
    )  # fmt: skip
    return _forward(tuning.forward, q_THD, v_THV, shared | NO_CACHE, max_seq_len)


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
    """``[T, H, V]``; the arguments are those of :func:`foundation.hstu.attention.operator.attention_cached`."""
    shared = _shared(
        q_THD, k_THD, v_THV, offsets, num_targets, position_bias, time_bias, timestamps,
        contextual_len, max_distance, full_tail, scale,
    )  # fmt: skip
    cache = {
        **_rows("k_cache", k_cache_SHD),
        **_rows("v_cache", v_cache_SHV),
        "cache_time_ptr": None if cache_timestamps is None else cache_timestamps.contiguous(),
        "cache_offsets_ptr": cache_offsets.contiguous(),
    }
    return _forward(tuning.cached, q_THD, v_THV, shared | cache, max_seq_len)


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
    """Gradients of q, k, v and both tables (empty where there is no table), each in the dtype of what it belongs to."""
    shared = _shared(
        q_THD, k_THD, v_THV, offsets, num_targets, position_bias, time_bias, timestamps,
        contextual_len, max_distance, full_tail, scale,
    )  # fmt: skip
    shared |= _rows("grad", grad_THV.to(v_THV.dtype))
    dq, dk, dv = _empty(q_THD), _empty(k_THD), _empty(v_THV)
    if q_THD.numel():
        outputs = _rows("dk", dk) | _rows("dv", dv)
        _launch(tuning.backward_keys, _tiles("BLOCK_N", q_THD, offsets), shared, outputs, share=1.0 / max_seq_len)
        outputs = _rows("dq", dq)
        _launch(tuning.backward_queries, _tiles("BLOCK_M", q_THD, offsets), shared, outputs, share=1.0 / max_seq_len)
    dposition, dtime = _table_gradients(q_THD, shared, position_bias, time_bias, max_seq_len)
    return _cut(dq, q_THD), _cut(dk, k_THD), _cut(dv, v_THV), dposition, dtime


def _forward(kernel: Any, q_THD: Tensor, v_THV: Tensor, arguments: dict[str, Any], max_seq_len: int) -> Tensor:
    out_THV = _empty(v_THV)
    if out_THV.numel():
        grid = _tiles("BLOCK_M", q_THD, arguments["offsets_ptr"])
        _launch(kernel, grid, arguments, _rows("out", out_THV), share=1.0 / max_seq_len)
    return _cut(out_THV, v_THV)


def _table_gradients(
    q_THD: Tensor,
    shared: dict[str, Any],
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    max_seq_len: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of both tables: each program adds up one of its own, and those are added in the programs' order."""
    if position_bias is None and time_bias is None:
        return q_THD.new_empty(0), q_THD.new_empty(0)
    tokens, heads, _ = q_THD.shape

    def parts(table: Tensor | None) -> Tensor | None:
        return None if table is None else q_THD.new_zeros(PROGRAMS, len(table), dtype=torch.float32)

    by_position, by_time = parts(position_bias), parts(time_bias)
    if q_THD.numel():
        # As many programs whatever the block size: a trial of one size must not leave anything that a second does not
        # write over.
        _launch(
            tuning.backward_biases,
            (PROGRAMS,),
            shared,
            {"position_parts_ptr": by_position, "time_parts_ptr": by_time},
            tokens=tokens,
            heads=heads,
            BLOCK_K=16 if time_bias is None else _padded(len(time_bias)),
        )

    def total(parts_GP: Tensor | None, table: Tensor | None) -> Tensor:
        if parts_GP is None or table is None:
            return q_THD.new_empty(0)
        return (parts_GP.sum(0, dtype=torch.float64) / max_seq_len).to(table.dtype)

    return total(by_position, position_bias), total(by_time, time_bias)


def _shared(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    num_targets: Tensor,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    timestamps: Tensor | None,
    contextual_len: int,
    max_distance: int | None,
    full_tail: int,
    scale: float,
) -> dict[str, Any]:
    """The arguments that all kernels have, by name."""
    width, value_width = q_THD.shape[-1], v_THV.shape[-1]
    if not interpreted() and q_THD.device.type != "cuda":
        raise ValueError(f"backend 'triton' computes for tensors on a CUDA device; q is on {q_THD.device}")
    if max(width, value_width) > WIDEST:
        raise ValueError(
            f"backend 'triton' takes widths up to {WIDEST} a head; q has {width} and v {value_width}. More heads, or "
            "backend 'blockwise'"
        )
    exact = q_THD.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return {
        **_rows("q", q_THD),
        **_rows("k", k_THD),
        **_rows("v", v_THV),
        "time_ptr": None if timestamps is None else timestamps.contiguous(),
        "offsets_ptr": offsets.contiguous(),
        "num_targets_ptr": num_targets.contiguous(),
        "position_bias_ptr": None if position_bias is None else position_bias.contiguous(),
        "time_bias_ptr": None if time_bias is None else time_bias.contiguous(),
        "bucket_starts_ptr": None if time_bias is None else _bucket_starts(len(time_bias), q_THD.device),
        "sequences": len(offsets) - 1,
        "positions": 0 if position_bias is None else len(position_bias),
        "buckets": 0 if time_bias is None else len(time_bias),
        "contextual_len": contextual_len,
        "max_distance": max_distance,
        "full_tail": full_tail,
        "scale": scale,
        "D": _padded(width),
        "V": _padded(value_width),
        "PRECISION": "ieee" if exact else "tf32",
    }


def _rows(name: str, value_THD: Tensor) -> dict[str, Any]:
    """A ``[T, H, D]`` tensor as kernels take it: slices of a wider one where they are, unless they need padding."""
    missing = _padded(value_THD.shape[-1]) - value_THD.shape[-1]
    if missing:
        value_THD = torch.nn.functional.pad(value_THD, (0, missing))
    elif value_THD.stride(-1) != 1:
        value_THD = value_THD.contiguous()
    stride, head, _ = value_THD.stride()
    return {f"{name}_ptr": value_THD, f"{name}_stride": stride, f"{name}_head": head}


def _padded(width: int) -> int:
    """The power of two, 16 at least, that kernels have for ``width``: rows that a GPU fetches in the background, as it
    does not fetch odd ones, in the shape that matrix units take.
    """
    return max(16, triton.next_power_of_2(width))


def _empty(like_THD: Tensor) -> Tensor:
    """What a kernel writes a result like that into; :func:`_cut` gives it its own width."""
    tokens, heads, width = like_THD.shape
    return torch.empty(tokens, heads, _padded(width), dtype=like_THD.dtype, device=like_THD.device)


def _cut(value_THD: Tensor, like_THD: Tensor) -> Tensor:
    return value_THD[..., : like_THD.shape[-1]].contiguous()


@cache
def _bucket_starts(buckets: int, device: torch.device) -> Tensor:
    """Where each bucket of time begins, float32 ``[K + 1]``: the thresholds between a 0 and an infinity."""
    inner = time_thresholds(buckets)
    return torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), torch.inf)]).to(device)


def _tiles(block: str, q_THD: Tensor, offsets: Tensor) -> Callable[[dict[str, Any]], tuple[int, int]]:
    """One program for each slot (see ``find_tile``) and head, given the block size chosen."""
    tokens, heads, _ = q_THD.shape
    return lambda chosen: (tokens // chosen[block] + len(offsets) - 1, heads)


def _launch(kernel: Any, grid: Any, arguments: dict[str, Any], outputs: dict[str, Any], **values: Any) -> None:
    with torch.cuda.device_of(arguments["q_ptr"]):
        kernel[grid](**arguments, **outputs, **values, enable_fp_fusion=True)
