"""One signature for HSTU attention, and the choice of the backend that computes it."""

from torch import Tensor

from foundation.hstu.attention import reference

BACKENDS = {"reference": reference.hstu_attention}


def available() -> dict[str, str]:
    """Backends by name, each with ``available`` or the reason why it is not."""
    return dict.fromkeys(BACKENDS, "available")


def hstu_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    offsets: Tensor,
    *,
    max_seq_len: int,
    num_targets: Tensor,
    contextual_len: int,
    position_bias: Tensor,
    time_bias: Tensor,
    timestamps: Tensor,
    backend: str = "reference",
) -> Tensor:
    """Pointwise attention of HSTU (arXiv 2402.17152, section 3) over jagged sequences.

    ``A = SiLU(q k^T / sqrt(D) + position_bias + time_bias) * mask / max_seq_len``, output ``A v``. The mask multiplies
    after the activation, and nothing is normalised over the sequence. A sequence is ``[context, history, targets]``:
    context tokens see each other, history is causal and sees the context, and a target sees both and itself.

    Args:
        q_THD, k_THD, v_THD: float ``[T, H, D]``, sequences one after the other.
        offsets: int64 ``[B + 1]``; sequence b owns tokens ``offsets[b]:offsets[b + 1]``.
        max_seq_len: the divisor N, the same for every sequence.
        num_targets: int64 ``[B]``, how many tokens at each sequence's end are targets.
        contextual_len: how many tokens at each sequence's start are context.
        position_bias: float ``[P]``, by distance in positions, clamped to ``P - 1``; shared by the heads.
        time_bias: float ``[K]``, by logarithmic bucket of the time between two tokens; shared by the heads.
        timestamps: int64 microseconds ``[T]``.
        backend: ``reference`` (plain PyTorch, one sequence at a time).

    Returns:
        float ``[T, H, D]``.

    Raises:
        ValueError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r}: allowed are {', '.join(BACKENDS)}. Example: reference")
    return BACKENDS[backend](
        q_THD,
        k_THD,
        v_THD,
        offsets,
        max_seq_len=max_seq_len,
        num_targets=num_targets,
        contextual_len=contextual_len,
        position_bias=position_bias,
        time_bias=time_bias,
        timestamps=timestamps,
    )
