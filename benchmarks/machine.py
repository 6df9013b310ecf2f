"""Facts about the machine that belong beside every measurement."""

import os
import statistics
import subprocess
import time
from collections.abc import Callable

import torch

SIZE = 2048
REPEATS = 5


def facts() -> dict[str, float | str]:
    """Commit, cores, threads, version of torch, and the rate of matrix products in this process, in GFLOP/s."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip() or "unknown",
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gemm_gflops_fp32": gemm_rate(torch.float32),
        "gemm_gflops_bf16": gemm_rate(torch.bfloat16),
    }


def gemm_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a product of two 2048 x 2048 matrices: the better of ``mm`` and oneDNN on a reordered weight."""
    a = torch.randn(SIZE, SIZE).to(dtype)
    b = torch.randn(SIZE, SIZE).to(dtype)
    rates = [_rate(lambda: torch.mm(a, b))]
    if torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(b)
        rates.append(_rate(lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")))
    return round(max(rates), 1)


def _rate(product: Callable[[], torch.Tensor]) -> float:
    product()
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - begun)
    return 2 * SIZE**3 / statistics.median(seconds) / 1e9
