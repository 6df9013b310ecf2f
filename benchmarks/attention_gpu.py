"""HSTU attention by the Triton kernels on this machine's GPU, against its peak and PyTorch's fused softmax attention.

Products of blocks are counted over the unmasked half only, as in :mod:`benchmarks.attention`. Every second is of
:data:`LAUNCHES` launches in a row, between two moments at which the GPU has nothing to do.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attention import with_gradient, without_gradient
from benchmarks.options import Options, Values
from benchmarks.timing import in_turn, ratios, spread
from foundation.hstu.attention import triton_backend
from foundation.hstu.attention.dispatch import hstu_attention
from hypercast.training.random import generator
from streaming.errors import ConfigError

SEQUENCES, LENGTH, HEADS, WIDTH = 8, 8192, 4, 64
RAGGED, LONGEST = 256, 1024
POSITIONS, TIME_BUCKETS = 1024, 64
ROUNDS, LAUNCHES = 7, 10
PEAK = 8192
"""Rows of the square matrices whose product is the machine's peak."""


def measure(_: Options) -> Values:
    """Keys are described in docs/benchmarks.md.

    Raises:
        ConfigError: the kernels cannot run here.
    """
    reason = triton_backend.unavailable()
    if reason is not None or triton_backend.interpreted():
        raise ConfigError(f"attention_gpu times kernels on a GPU: {reason or 'they are interpreted here'}")
    return {
        "gpu": torch.cuda.get_device_name(),
        **long_sequences(),
        **ragged_batch(),
        **single_precision(),
        "gpu_bytes_per_token": bytes_per_token(),
    }


def long_sequences() -> Values:
    """Eight causal sequences of 8,192 tokens in bfloat16, with and without both bias tables."""
    tokens = SEQUENCES * LENGTH
    given = leaves(tokens, torch.bfloat16)
    softmax = [leaf.detach().view(SEQUENCES, LENGTH, HEADS, WIDTH).transpose(1, 2).requires_grad_() for leaf in given]
    offsets = torch.arange(0, tokens + 1, LENGTH, device="cuda")
    tables, timestamps = biases(tokens)

    def hstu(**more: Any) -> Tensor:
        return hstu_attention(*given, offsets, max_seq_len=LENGTH, backend="triton", **more)

    def biased() -> Tensor:
        return hstu(position_bias=tables[0], time_bias=tables[1], timestamps=timestamps)

    def fused_softmax() -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(*softmax, is_causal=True)

    forward = timed(
        ours=without_gradient(hstu),
        biased=without_gradient(biased),
        softmax=without_gradient(fused_softmax),
        peak=product(torch.bfloat16),
    )
    both = timed(
        ours=with_gradient(hstu, given),
        biased=with_gradient(biased, [*given, *tables]),
        softmax=with_gradient(fused_softmax, softmax),
    )
    peak = [2 * PEAK**3 / seconds for seconds in forward["peak"]]
    work = SEQUENCES * LENGTH * LENGTH * WIDTH * HEADS  # of one product of blocks, half of it masked

    def shares(key: str, products: int, seconds: list[float]) -> Values:
        of_peak = [products * work / one / best for one, best in zip(seconds, peak, strict=True)]
        return {**spread(key, of_peak)}

    return {
        **spread("gpu_peak_tflops_bf16", [rate / 1e12 for rate in peak], 1),
        **shares("gpu_fwd_share", 2, forward["ours"]),
        **shares("gpu_fwdbwd_share", 7, both["ours"]),
        **shares("gpu_fwd_share_bias", 2, forward["biased"]),
        **shares("gpu_fwdbwd_share_bias", 7, both["biased"]),
        **shares("gpu_softmax_fwd_share", 2, forward["softmax"]),
        **shares("gpu_softmax_fwdbwd_share", 7, both["softmax"]),
        **ratios("gpu_vs_flash_fwd", forward["softmax"], forward["ours"]),
        **ratios("gpu_vs_flash_fwdbwd", both["softmax"], both["ours"]),
    }


def ragged_batch() -> Values:
    """256 sequences of 1 to 1,024 tokens in bfloat16: padded as the HSTU authors' reference, padded softmax, ours."""
    lengths = torch.randint(1, LONGEST + 1, (RAGGED,), generator=generator(5, "lengths"))
    lengths[0] = LONGEST
    offsets = F.pad(lengths.cumsum(0), (1, 0)).cuda()
    given = leaves(int(offsets[-1]), torch.bfloat16)
    place = (torch.arange(LONGEST)[None] < lengths[:, None]).cuda()
    mask = (torch.ones(LONGEST, LONGEST, device="cuda").tril() / LONGEST).bfloat16()

    def whole() -> list[Tensor]:
        return [leaf.new_zeros(RAGGED, LONGEST, *leaf.shape[1:]).index_put((place,), leaf) for leaf in given]

    def padded() -> Tensor:
        q_BNHD, k_BNHD, v_BNHD = whole()
        scores_BHNN = torch.einsum("bihd,bjhd->bhij", q_BNHD, k_BNHD) * WIDTH**-0.5
        return torch.einsum("bhij,bjhd->bihd", F.silu(scores_BHNN) * mask, v_BNHD)[place]

    def padded_softmax() -> Tensor:
        q, k, v = (each.transpose(1, 2) for each in whole())
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)[place]

    def ours() -> Tensor:
        return hstu_attention(*given, offsets, max_seq_len=LONGEST, backend="triton")

    torch.testing.assert_close(padded(), ours(), rtol=2e-2, atol=2e-3)
    seconds = timed(
        padded=with_gradient(padded, given),
        softmax=with_gradient(padded_softmax, given),
        ours=with_gradient(ours, given),
    )
    return {
        **ratios("gpu_ragged_vs_padded", seconds["padded"], seconds["ours"]),
        **ratios("gpu_ragged_vs_padded_flash", seconds["softmax"], seconds["ours"]),
        **spread("gpu_ragged_ms", [1e3 * each for each in seconds["ours"]]),
    }


def single_precision() -> Values:
    """One sequence of 8,192 tokens in float32, forward and backward: TF32 against exact products."""
    given = leaves(LENGTH, torch.float32)
    offsets = torch.tensor([0, LENGTH], device="cuda")

    def run(precision: str) -> Callable[[], Any]:
        def hstu() -> Tensor:
            return hstu_attention(*given, offsets, max_seq_len=LENGTH, backend="triton")

        both = with_gradient(hstu, given)

        def under() -> None:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(precision)
            both()
            torch.set_float32_matmul_precision(before)

        return under

    seconds = timed(tf32=run("high"), exact=run("highest"))
    return {
        **ratios("gpu_tf32_speedup", seconds["exact"], seconds["tf32"]),
        **spread("gpu_tf32_ms", [1e3 * each for each in seconds["tf32"]]),
    }


def bytes_per_token() -> float:
    """The most memory that forward and backward take at once beside inputs, per token of one sequence."""
    given = leaves(4 * LENGTH, torch.bfloat16)
    offsets = torch.tensor([0, 4 * LENGTH], device="cuda")
    weights = torch.ones_like(given[2])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = hstu_attention(*given, offsets, max_seq_len=4 * LENGTH, backend="triton")
    torch.autograd.grad(output, given, weights)
    return round((torch.cuda.max_memory_allocated() - before) / (4 * LENGTH), 1)


def leaves(tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """Random q, k, v on the GPU, each ``[tokens, heads, width]``."""
    shape = (tokens, HEADS, WIDTH)
    drawn = (torch.randn(*shape, generator=generator(seed, "normal")) for seed in range(3))
    return [each.to("cuda", dtype).requires_grad_() for each in drawn]


def biases(tokens: int) -> tuple[list[Tensor], Tensor]:
    """Both tables, and timestamps that grow by gaps of a second to two days."""
    tables = [
        torch.randn(size, generator=generator(seed, "bias")).cuda().requires_grad_()
        for seed, size in enumerate((POSITIONS, TIME_BUCKETS))
    ]
    gaps = (torch.rand(tokens, generator=generator(9, "gaps")) * 12).exp() * 1e6
    return tables, gaps.long().cumsum(0).cuda()


def product(dtype: torch.dtype) -> Callable[[], Any]:
    a, b = (torch.randn(PEAK, PEAK, generator=generator(seed, "peak")).to("cuda", dtype) for seed in (1, 2))
    return lambda: torch.mm(a, b)


def timed(**contestants: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of one launch of each contestant in each round, in turn."""

    def launched(run: Callable[[], Any]) -> Callable[[], None]:
        def several() -> None:
            for _ in range(LAUNCHES):
                run()
            torch.cuda.synchronize()

        return several

    seconds = in_turn(ROUNDS, **{name: launched(run) for name, run in contestants.items()})
    return {name: [each / LAUNCHES for each in found] for name, found in seconds.items()}
