"""HSTU attention as PyTorch operators, ``torch.ops.hypercast.*``: what autograd, ``torch.compile`` and tracing see.

A backend is a module with ``forward``, ``backward`` and ``cached``, which take exactly the arguments of the operators
below but the last; it is looked up by name when an operator runs, never while one is traced. Optional gradients are
empty tensors where the argument was None: an operator cannot return None.

Shape legend: T tokens of all sequences, S stored tokens, H heads, D width of queries and keys, V width of values.
"""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from foundation.hstu.attention.checks import check_values
from foundation.hstu.attention.flops import attention_flops

MODULES = {
    "cpu": "foundation.hstu.attention.cpu_backend",
    "blockwise": "foundation.hstu.attention.blockwise",
    "triton": "foundation.hstu.attention.triton_backend",
}


def _module(backend: str) -> ModuleType:
    return importlib.import_module(MODULES[backend])


@torch.library.custom_op("hypercast::hstu_attention", mutates_args=())
def attention(
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
    backend: str,
) -> Tensor:
    """Forward, ``[T, H, V]``. Bias tables are float32.

    Offsets and targets are checked here, because what they hold is not known when the call is traced.
    """
    check_values("offsets", offsets, len(q_THD), num_targets)
    return _module(backend).forward(
        q_THD,
        k_THD,
        v_THV,
        offsets,
        num_targets,
        position_bias,
        time_bias,
        timestamps,
        max_seq_len,
        contextual_len,
        max_distance,
        full_tail,
        scale,
    )


@torch.library.custom_op("hypercast::hstu_attention_backward", mutates_args=())
def attention_backward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, position_bias and time_bias; the scores are computed again, none are stored."""
    return _module(backend).backward(
        grad_THV,
        q_THD,
        k_THD,
        v_THV,
        offsets,
        num_targets,
        position_bias,
        time_bias,
        timestamps,
        max_seq_len,
        contextual_len,
        max_distance,
        full_tail,
        scale,
    )


@torch.library.custom_op("hypercast::hstu_attention_cached", mutates_args=())
def attention_cached(
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
    backend: str,
) -> Tensor:
    """New tokens over stored keys and values, forward only, ``[T, H, V]``."""
    check_values("offsets", offsets, len(q_THD), num_targets)
    check_values("cache_offsets", cache_offsets, len(k_cache_SHD))
    return _module(backend).cached(
        q_THD,
        k_THD,
        v_THV,
        offsets,
        k_cache_SHD,
        v_cache_SHV,
        cache_offsets,
        num_targets,
        position_bias,
        time_bias,
        timestamps,
        cache_timestamps,
        max_seq_len,
        contextual_len,
        max_distance,
        full_tail,
        scale,
    )


@attention.register_fake
def _(q_THD: Tensor, k_THD: Tensor, v_THV: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(v_THV, memory_format=torch.contiguous_format)


@attention_cached.register_fake
def _(q_THD: Tensor, k_THD: Tensor, v_THV: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(v_THV, memory_format=torch.contiguous_format)


@attention_backward.register_fake
def _(
    grad_THV: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    num_targets: Tensor,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def like(value: Tensor | None) -> Tensor:
        if value is None:
            return q_THD.new_empty(0)
        return torch.empty_like(value, memory_format=torch.contiguous_format)

    return like(q_THD), like(k_THD), like(v_THV), like(position_bias), like(time_bias)


TENSORS = 8
"""Of the operator's arguments, the first eight are tensors (or None) and the rest plain values."""


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:TENSORS])
    ctx.values = inputs[TENSORS:]


def _backward(ctx: Any, grad_THV: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: under activation recomputation each look computes them again
    q, k, v, dposition, dtime = attention_backward(grad_THV, *saved, *ctx.values)
    *_, position_bias, time_bias, _ = saved
    no_gradient = (None,) * (1 + len(ctx.values))
    return (
        q,
        k,
        v,
        None,
        None,
        None if position_bias is None else dposition,
        None if time_bias is None else dtime,
        *no_gradient,
    )


torch.library.register_autograd("hypercast::hstu_attention", _backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.hypercast.hstu_attention, get_raw=True)
def _forward_flops(
    q_THD: Tensor, _: Tensor, v_THV: Tensor, offsets: Tensor, num_targets: Tensor, *rest: Any, **__: Any
) -> int:
    return attention_flops(2, q_THD, v_THV, offsets, num_targets, *rest[4:7])


@register_flop_formula(torch.ops.hypercast.hstu_attention_backward, get_raw=True)
def _backward_flops(_: Tensor, *inputs: Any, **kwargs: Any) -> int:
    return _forward_flops(*inputs, **kwargs) // 2 * 5
