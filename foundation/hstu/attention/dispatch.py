"""One signature for HSTU attention, and the choice of the backend that computes it."""

import functools
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from foundation.hstu.attention import operator, reference
from foundation.hstu.attention.checks import check_cache, check_inputs, check_values

Backend = Literal["reference", "blockwise", "cpu", "triton"]
BACKENDS = get_args(Backend)


def available() -> dict[str, str]:
    """Backends by name, each with ``available`` or the reason why it is not."""
    from foundation.hstu.attention import cpu_backend, triton_backend

    return {
        "reference": "available",
        "blockwise": "available",
        "cpu": cpu_backend.unavailable() or "available",
        "triton": triton_backend.unavailable() or "available",
    }


@torch.compiler.assume_constant_result
def choose(device: torch.device, dtype: torch.dtype) -> str:
    """The fastest backend that can run here: float64 is the reference's alone; a GPU runs Triton; a CPU the compiled
    kernels, or the blockwise PyTorch path if they cannot be compiled (with one warning that says why). A compiled graph
    takes the choice as a constant: compiling kernels is nothing to trace.
    """
    if dtype == torch.float64:
        return "reference"
    return "triton" if device.type == "cuda" else _cpu_backend()


@functools.cache
def _cpu_backend() -> str:
    from foundation.hstu.attention import cpu_backend

    reason = cpu_backend.unavailable()
    if reason is None:
        return "cpu"
    warnings.warn(f"HSTU attention runs without its compiled kernels, several times slower: {reason}", stacklevel=4)
    return "blockwise"


def hstu_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    *,
    max_seq_len: int,
    num_targets: Tensor | None = None,
    contextual_len: int = 0,
    max_distance: int | None = None,
    full_tail: int = 0,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    timestamps: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Pointwise attention of HSTU (arXiv 2402.17152, section 3) over jagged sequences; differentiable once.

    ``A = SiLU(scale q k^T + position_bias + time_bias) * mask / max_seq_len``, output ``A v``. The mask multiplies
    after the activation, and nothing is normalised over the sequence. A sequence is ``[context, history, targets]``:
    context tokens see each other, history is causal and sees the context, and a target sees both and itself.
    :mod:`foundation.hstu.attention.semantics` defines mask, positions and buckets of time.

    Args:
        q_THD, k_THD: ``[T, H, D]``, sequences one after the other; float32 or bfloat16 (float64: reference only).
            bfloat16 accumulates in float32.
        v_THV: ``[T, H, V]`` of the same dtype.
        offsets: int64 ``[B + 1]``; sequence b owns tokens ``offsets[b]:offsets[b + 1]``. Sequences may be empty.
        max_seq_len: the divisor N, the same for every sequence.
        num_targets: int64 ``[B]``, how many tokens at each sequence's end are targets; none if not given.
        contextual_len: how many tokens at each sequence's start are context.
        max_distance: history further away than this many positions is not seen; no limit if not given.
        full_tail: with ``max_distance``, how many tokens at the end of the history see everything nevertheless; above
            0, so do the targets.
        position_bias: float ``[P]``, by distance in positions, clamped to ``P - 1``; shared by the heads.
        time_bias: float ``[K]``, by logarithmic bucket of the time between two tokens; shared by the heads.
        timestamps: int64 microseconds ``[T]``, in any order; needed with ``time_bias`` only.
        scale: of the scores; ``D ** -0.5`` if not given.
        backend: ``reference`` (plain PyTorch, one sequence at a time), ``blockwise`` (plain PyTorch, memory linear in
            tokens), ``cpu`` (compiled), ``triton``; the fastest that runs here if not given.

    Returns:
        ``[T, H, V]``, the dtype of v. Gradients flow to q, k, v and both tables.

    Raises:
        ValueError, TypeError: an argument has another shape, dtype or range than described.
    """
    check_inputs(
        q_THD,
        k_THD,
        v_THV,
        offsets,
        max_seq_len=max_seq_len,
        num_targets=num_targets,
        contextual_len=contextual_len,
        max_distance=max_distance,
        full_tail=full_tail,
        position_bias=position_bias,
        time_bias=time_bias,
        timestamps=timestamps,
    )
    backend = _checked(backend, q_THD)
    scale = q_THD.shape[-1] ** -0.5 if scale is None else scale
    if num_targets is None:
        num_targets = offsets.new_zeros(len(offsets) - 1)
    if backend == "reference":
        check_values("offsets", offsets, len(q_THD), num_targets)
        return reference.hstu_attention(
            q_THD,
            k_THD,
            v_THV,
            offsets,
            max_seq_len=max_seq_len,
            num_targets=num_targets,
            contextual_len=contextual_len,
            max_distance=max_distance,
            full_tail=full_tail,
            position_bias=position_bias,
            time_bias=time_bias,
            timestamps=timestamps,
            scale=scale,
        )
    return operator.attention(
        q_THD,
        k_THD,
        v_THV,
        offsets,
        num_targets,
        _float32(position_bias),
        _float32(time_bias),
        None if time_bias is None else timestamps,
        max_seq_len,
        contextual_len,
        max_distance,
        full_tail,
        scale,
        backend,
    )


def hstu_attention_cached(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    offsets: Tensor,
    k_cache_SHD: Tensor,
    v_cache_SHV: Tensor,
    cache_offsets: Tensor,
    *,
    max_seq_len: int,
    num_targets: Tensor | None = None,
    contextual_len: int = 0,
    max_distance: int | None = None,
    full_tail: int = 0,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    timestamps: Tensor | None = None,
    cache_timestamps: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """:func:`hstu_attention` for the last tokens of each sequence, over stored keys and values of the tokens before.

    Equal to the rows of the new tokens in one call over whole sequences. Forward only.

    Args:
        q_THD, k_THD, v_THV, offsets, num_targets, timestamps: of the new tokens; targets are among them.
        k_cache_SHD, v_cache_SHV, cache_offsets, cache_timestamps: of the tokens stored, context and history, one
            sequence for each of the new; int64 ``[B + 1]`` and ``[S]``.
        The rest: as in :func:`hstu_attention`, ``max_seq_len`` and ``contextual_len`` being those of whole sequences.

    Returns:
        ``[T, H, V]``.

    Raises:
        ValueError, TypeError: an argument has another shape, dtype or range than described.
    """
    check_inputs(
        q_THD,
        k_THD,
        v_THV,
        offsets,
        max_seq_len=max_seq_len,
        num_targets=num_targets,
        contextual_len=contextual_len,
        max_distance=max_distance,
        full_tail=full_tail,
        position_bias=position_bias,
        time_bias=time_bias,
        timestamps=timestamps,
    )
    check_cache(
        k_THD,
        v_THV,
        offsets,
        k_cache_SHD,
        v_cache_SHV,
        cache_offsets,
        time_bias=time_bias,
        cache_timestamps=cache_timestamps,
    )
    backend = _checked(backend, q_THD)
    scale = q_THD.shape[-1] ** -0.5 if scale is None else scale
    if num_targets is None:
        num_targets = offsets.new_zeros(len(offsets) - 1)
    if backend == "reference":
        check_values("offsets", offsets, len(q_THD), num_targets)
        check_values("cache_offsets", cache_offsets, len(k_cache_SHD))
        return reference.hstu_attention_cached(
            q_THD,
            k_THD,
            v_THV,
            offsets,
            k_cache_SHD,
            v_cache_SHV,
            cache_offsets,
            max_seq_len=max_seq_len,
            num_targets=num_targets,
            contextual_len=contextual_len,
            max_distance=max_distance,
            full_tail=full_tail,
            position_bias=position_bias,
            time_bias=time_bias,
            timestamps=timestamps,
            cache_timestamps=cache_timestamps,
            scale=scale,
        )
    return operator.attention_cached(
        q_THD,
        k_THD,
        v_THV,
        offsets,
        k_cache_SHD,
        v_cache_SHV,
        cache_offsets,
        num_targets,
        _float32(position_bias),
        _float32(time_bias),
        None if time_bias is None else timestamps,
        None if time_bias is None else cache_timestamps,
        max_seq_len,
        contextual_len,
        max_distance,
        full_tail,
        scale,
        backend,
    )


def _checked(backend: str | None, q_THD: Tensor) -> str:
    """The backend that computes for ``q_THD``."""
    if backend is None:
        return choose(q_THD.device, q_THD.dtype)
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r}: allowed are {', '.join(BACKENDS)}. Example: reference")
    if backend != "reference" and q_THD.dtype == torch.float64:
        raise TypeError(f"backend {backend!r} takes float32 and bfloat16; float64 is for the reference backend")
    return backend


def _float32(table: Tensor | None) -> Tensor | None:
    return None if table is None else table.float()


__all__ = ["BACKENDS", "available", "choose", "hstu_attention", "hstu_attention_cached"]
