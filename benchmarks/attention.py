"""HSTU attention against the machine's peak, PyTorch's fused softmax attention, and the obvious ways to compute it.

Products of blocks are counted over the unmasked half only: 2 forward, 5 backward, `2 * N * N / 2 * D` operations each.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import machine
from benchmarks.options import Options, Values
from benchmarks.timing import in_turn, ratios, spread
from foundation.hstu.attention import reference
from foundation.hstu.attention.dispatch import choose, hstu_attention
from hypercast.training.random import generator

LENGTH, HEADS, WIDTH = 8192, 4, 64
RAGGED_BATCH, RAGGED_MAXIMUM, RAGGED_MEAN, RAGGED_WIDTH = 128, 211, 140, 50
TIME_BUCKETS = 64
ROUNDS = 7


def measure(_: Options) -> Values:
    """Keys are described in docs/benchmarks.md."""
    return {
        "attention_backend": choose(torch.device("cpu"), torch.float32),
        **long_sequence(),
        **ragged_batch(),
        "bytes_per_token_8192": bytes_per_token(8192),
        "bytes_per_token_16384": bytes_per_token(16384),
        "bytes_per_token_32768": bytes_per_token(32768),
    }


def long_sequence() -> Values:
    """One causal sequence of 8,192 tokens, 4 heads of 64."""
    ours = leaves(LENGTH, HEADS, WIDTH)
    half = [leaf.detach().to(torch.bfloat16).requires_grad_() for leaf in ours]
    softmax = [leaf.detach().transpose(0, 1)[None].contiguous().requires_grad_() for leaf in ours]
    tables = [normal(LENGTH, seed=7).requires_grad_(), normal(TIME_BUCKETS, seed=8).requires_grad_()]
    offsets = torch.tensor([0, LENGTH])
    gaps = (torch.rand(LENGTH, generator=generator(9, "gaps")) * 12).exp() * 1e6
    timestamps = gaps.long().cumsum(0)

    def hstu(given: list[Tensor]) -> Tensor:
        return hstu_attention(*given, offsets, max_seq_len=LENGTH)

    def biased() -> Tensor:
        return hstu_attention(
            *ours,
            offsets,
            max_seq_len=LENGTH,
            position_bias=tables[0],
            time_bias=tables[1],
            timestamps=timestamps,
        )

    def fused_softmax() -> Tensor:
        return F.scaled_dot_product_attention(*softmax, is_causal=True)

    peak = machine.gemm_rate(torch.float32) * 1e9
    forward = in_turn(
        ROUNDS,
        ours=without_gradient(lambda: hstu(ours)),
        half=without_gradient(lambda: hstu(half)),
        biased=without_gradient(biased),
        softmax=without_gradient(fused_softmax),
    )
    both = in_turn(
        ROUNDS,
        ours=with_gradient(lambda: hstu(ours), ours),
        half=with_gradient(lambda: hstu(half), half),
        biased=with_gradient(biased, [*ours, *tables]),
        softmax=with_gradient(fused_softmax, softmax),
    )
    peak = max(peak, machine.gemm_rate(torch.float32) * 1e9)
    product = 2 * LENGTH * LENGTH / 2 * WIDTH * HEADS
    return {
        **spread("fwd_share", [2 * product / seconds / peak for seconds in forward["ours"]]),
        **spread("fwdbwd_share", [7 * product / seconds / peak for seconds in both["ours"]]),
        **spread("fwd_share_bias", [2 * product / seconds / peak for seconds in forward["biased"]]),
        **spread("fwdbwd_share_bias", [7 * product / seconds / peak for seconds in both["biased"]]),
        **spread("softmax_fwd_share", [2 * product / seconds / peak for seconds in forward["softmax"]]),
        **spread("softmax_fwdbwd_share", [7 * product / seconds / peak for seconds in both["softmax"]]),
        **ratios("bf16_speedup", both["ours"], both["half"]),
        **ratios("bf16_speedup_fwd", forward["ours"], forward["half"]),
        **ratios("vs_fused_softmax_fwd", forward["softmax"], forward["ours"]),
        **ratios("vs_fused_softmax_fwdbwd", both["softmax"], both["ours"]),
    }


def ragged_batch() -> Values:
    """128 sequences of 69 to 211 tokens, forward and backward: padded as the HSTU authors' reference, a loop, ours."""
    lengths = torch.randint(
        2 * RAGGED_MEAN - RAGGED_MAXIMUM, RAGGED_MAXIMUM + 1, (RAGGED_BATCH,), generator=generator(5, "lengths")
    )
    lengths[0] = RAGGED_MAXIMUM
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    given = leaves(int(offsets[-1]), 1, RAGGED_WIDTH)
    place = torch.arange(RAGGED_MAXIMUM)[None] < lengths[:, None]
    mask = torch.ones(RAGGED_MAXIMUM, RAGGED_MAXIMUM).tril() / RAGGED_MAXIMUM

    def padded() -> Tensor:
        q_BNHD, k_BNHD, v_BNHD = (
            leaf.new_zeros(RAGGED_BATCH, RAGGED_MAXIMUM, *leaf.shape[1:]).index_put((place,), leaf) for leaf in given
        )
        scores_BHNN = torch.einsum("bihd,bjhd->bhij", q_BNHD, k_BNHD) * RAGGED_WIDTH**-0.5
        return torch.einsum("bhij,bjhd->bihd", F.silu(scores_BHNN) * mask, v_BNHD)[place]

    def loop() -> Tensor:
        return reference.hstu_attention(*given, offsets, max_seq_len=RAGGED_MAXIMUM)

    def ours() -> Tensor:
        return hstu_attention(*given, offsets, max_seq_len=RAGGED_MAXIMUM)

    for other in (padded, loop):
        torch.testing.assert_close(other(), ours(), rtol=1e-4, atol=1e-6)
    seconds = in_turn(
        3 * ROUNDS,
        padded=with_gradient(padded, given),
        loop=with_gradient(loop, given),
        ours=with_gradient(ours, given),
    )
    return {
        **ratios("ragged_vs_padded", seconds["padded"], seconds["ours"]),
        **ratios("ragged_vs_loop", seconds["loop"], seconds["ours"]),
        **spread("ragged_ms", [1e3 * each for each in seconds["ours"]]),
    }


def bytes_per_token(length: int) -> float:
    """The most memory that forward and backward take at once beside their inputs, per token of one sequence.

    In a process of its own: elsewhere the allocator may have memory at hand that was counted before.
    """
    code = f"from benchmarks.attention import peak_bytes; print(peak_bytes({length}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return round(int(ended.stdout) / length, 1)


def peak_bytes(length: int) -> int:
    """Of one forward and backward in this process, beyond what it holds before."""
    few = leaves(64, HEADS, WIDTH)
    with_gradient(lambda: hstu_attention(*few, torch.tensor([0, 64]), max_seq_len=64), few)()
    given = leaves(length, HEADS, WIDTH)
    weights = torch.ones_like(given[2])
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    output = hstu_attention(*given, torch.tensor([0, length]), max_seq_len=length)
    torch.autograd.grad(output, given, weights)
    return _memory("VmHWM") - before


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "normal"))


def leaves(tokens: int, heads: int, width: int) -> list[Tensor]:
    """Random q, k, v, each ``[tokens, heads, width]``."""
    return [normal(tokens, heads, width, seed=seed).requires_grad_() for seed in range(3)]


def without_gradient(run: Callable[[], Any]) -> Callable[[], Any]:
    return torch.no_grad()(run)


def with_gradient(run: Callable[[], Tensor], given: list[Tensor]) -> Callable[[], Any]:
    """Forward, then backward of a sum with fixed weights."""
    weights = torch.ones_like(run())

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(), given, weights)

    return both
