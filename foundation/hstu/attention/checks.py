"""What the arguments of HSTU attention must look like; one clear error for each that does not."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float64)


def check_inputs(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    *,
    max_seq_len: int,
    num_targets: Tensor | None,
    contextual_len: int,
    max_distance: int | None,
    full_tail: int,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    timestamps: Tensor | None,
) -> None:
    """Raise ValueError or TypeError, naming the argument, what it is and what it should be.

    Shapes, dtypes and numbers only, which are known when the call is traced; :func:`check_values` does the rest.
    """
    if q_THD.ndim != 3:
        raise ValueError(f"q has shape {_shape(q_THD)}; expected [T, H, D]: tokens of all sequences, heads, width")
    tokens, heads, _ = q_THD.shape
    if k_THD.shape != q_THD.shape:
        raise ValueError(f"k has shape {_shape(k_THD)}; expected that of q, {_shape(q_THD)}")
    if v_THV.ndim != 3 or v_THV.shape[:2] != (tokens, heads):
        raise ValueError(f"v has shape {_shape(v_THV)}; expected [T, H, V] = [{tokens}, {heads}, V]")
    if q_THD.dtype not in FLOATS or not q_THD.dtype == k_THD.dtype == v_THV.dtype:
        raise TypeError(
            f"q, k, v are {q_THD.dtype}, {k_THD.dtype}, {v_THV.dtype}; expected one dtype for all three: float32, "
            "bfloat16, or float64 (reference backend only)"
        )
    _check_offsets("offsets", offsets)
    if num_targets is not None:
        _check_index("num_targets", num_targets, (len(offsets) - 1,))
    for name, value, least in (
        ("max_seq_len", max_seq_len, 1),
        ("contextual_len", contextual_len, 0),
        ("max_distance", 0 if max_distance is None else max_distance, 0),
        ("full_tail", full_tail, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; expected an integer of at least {least}")
    for name, table, what in (
        ("position_bias", position_bias, "distance, [P]"),
        ("time_bias", time_bias, "bucket of time, [K]"),
    ):
        if table is not None and (table.ndim != 1 or len(table) == 0 or not table.is_floating_point()):
            raise ValueError(f"{name} has shape {_shape(table)} and dtype {table.dtype}; expected one float per {what}")
    if time_bias is not None:
        if timestamps is None:
            raise ValueError(f"time_bias needs timestamps: int64 microseconds, [T] = [{tokens}]")
        _check_index("timestamps", timestamps, (tokens,))


def check_cache(
    k_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    k_cache_SHD: Tensor,
    v_cache_SHV: Tensor,
    cache_offsets: Tensor,
    *,
    time_bias: Tensor | None,
    cache_timestamps: Tensor | None,
) -> None:
    """What :func:`check_inputs` is for the new tokens, for the stored ones."""
    stored = len(k_cache_SHD) if k_cache_SHD.ndim else 0
    for name, cache, new in (("k_cache", k_cache_SHD, k_THD), ("v_cache", v_cache_SHV, v_THV)):
        expected = (stored, *new.shape[1:])
        if tuple(cache.shape) != expected:
            what = "stored tokens, heads, width as of the new tokens"
            raise ValueError(f"{name} has shape {_shape(cache)}; expected {list(expected)}: {what}")
        if cache.dtype != new.dtype:
            raise TypeError(f"{name} is {cache.dtype}; expected that of the new tokens, {new.dtype}")
    _check_offsets("cache_offsets", cache_offsets)
    if len(cache_offsets) != len(offsets):
        raise ValueError(
            f"cache_offsets has {len(cache_offsets) - 1} sequences and offsets {len(offsets) - 1}; expected as many"
        )
    if time_bias is not None:
        if cache_timestamps is None:
            raise ValueError(f"time_bias needs cache_timestamps: int64 microseconds, [S] = [{stored}]")
        _check_index("cache_timestamps", cache_timestamps, (stored,))


def check_values(name: str, offsets: Tensor, tokens: int, num_targets: Tensor | None = None) -> None:
    """Raise ValueError unless the offsets called ``name`` start at 0, never decrease and end at the number of tokens,
    and targets are no more than a sequence's tokens.

    For CPU tensors only: on a GPU, a look at values would wait for the device.
    """
    if offsets.device.type != "cpu":
        return
    lengths = offsets.diff()
    if int(offsets[0]) != 0 or int(offsets[-1]) != tokens or bool((lengths < 0).any()):
        raise ValueError(
            f"{name} run from {int(offsets[0])} to {int(offsets[-1])} for {tokens} tokens; expected to start at 0, "
            f"never to decrease and to end at {tokens}"
        )
    if num_targets is not None and bool(((num_targets < 0) | (num_targets > lengths)).any()):
        raise ValueError(
            f"num_targets {num_targets.tolist()[:8]} must lie between 0 and the lengths {lengths.tolist()[:8]}"
        )


def _check_offsets(name: str, offsets: Tensor) -> None:
    if offsets.ndim != 1 or len(offsets) == 0 or offsets.dtype != torch.int64:
        raise ValueError(
            f"{name} has shape {_shape(offsets)} and dtype {offsets.dtype}; expected int64 [B + 1], for example "
            "tensor([0, 3, 7]) for two sequences of 3 and 4 tokens"
        )


def _check_index(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.dtype != torch.int64 or tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {_shape(value)} and dtype {value.dtype}; expected int64 {list(shape)}")


def _shape(value: Tensor) -> list[int]:
    return list(value.shape)
