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

    Whatever needs a look at values (offsets, targets) is checked on CPU tensors only: on a GPU it would wait for the
    device.
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
    check_offsets("offsets", offsets, tokens)
    sequences = len(offsets) - 1
    if num_targets is not None:
        _check_index("num_targets", num_targets, (sequences,))
        lengths = offsets.diff()
        if num_targets.device.type == "cpu" and bool(((num_targets < 0) | (num_targets > lengths)).any()):
            raise ValueError(
                f"num_targets {num_targets.tolist()[:8]} must lie between 0 and the lengths {lengths.tolist()[:8]}"
            )
    for name, value, least in (
        ("max_seq_len", max_seq_len, 1),
        ("contextual_len", contextual_len, 0),
        ("max_distance", 0 if max_distance is None else max_distance, 0),
        ("full_tail", full_tail, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; expected an integer of at least {least}")
    for name, table in (("position_bias", position_bias), ("time_bias", time_bias)):
        if table is not None and (table.ndim != 1 or len(table) == 0 or not table.is_floating_point()):
            raise ValueError(
                f"{name} has shape {_shape(table)} and dtype {table.dtype}; expected one float per distance, [P]"
            )
    if time_bias is not None:
        if timestamps is None:
            raise ValueError(f"time_bias needs timestamps: int64 microseconds, [T] = [{tokens}]")
        _check_index("timestamps", timestamps, (tokens,))


def check_offsets(name: str, offsets: Tensor, tokens: int) -> None:
    """Offsets must be int64 ``[B + 1]``, start at 0, not decrease, and end at the number of tokens."""
    if offsets.ndim != 1 or len(offsets) == 0 or offsets.dtype != torch.int64:
        raise ValueError(
            f"{name} has shape {_shape(offsets)} and dtype {offsets.dtype}; expected int64 [B + 1], for example "
            "tensor([0, 3, 7]) for two sequences of 3 and 4 tokens"
        )
    if offsets.device.type != "cpu":
        return
    if int(offsets[0]) != 0 or int(offsets[-1]) != tokens or bool((offsets.diff() < 0).any()):
        raise ValueError(
            f"{name} run from {int(offsets[0])} to {int(offsets[-1])} for {tokens} tokens; expected to start at 0, "
            f"never to decrease and to end at {tokens}"
        )


def _check_index(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.dtype != torch.int64 or tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {_shape(value)} and dtype {value.dtype}; expected int64 {list(shape)}")


def _shape(value: Tensor) -> list[int]:
    return list(value.shape)
