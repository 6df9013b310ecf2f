"""The kernels with the block sizes to try: by generation of GPU, by how numbers are multiplied, by width.

Shared memory bounds them (a program of sm_80 has 163 KB, of sm_90 and sm_100 227 KB), and registers do before: a
configuration stands here only if it compiles without spilling with every feature on, which tests hold. The first of
each row also fits the 99 KB of the smaller GPUs of each generation.
"""

from functools import partial
from typing import Any, Literal

import torch
import triton

from foundation.hstu.attention.triton_kernels.backward import attention_backward_keys, attention_backward_queries
from foundation.hstu.attention.triton_kernels.bias import attention_backward_biases
from foundation.hstu.attention.triton_kernels.forward import attention_forward
from foundation.hstu.attention.triton_kernels.interpreter import interpreted

Kind = Literal["bf16", "tf32", "ieee"]
Blocks = tuple[int, int, int, int]
"""Queries and keys of a block, warps, stages."""

GENERATIONS = (80, 90, 100)
WIDTHS = (32, 64, 128, 256)

TABLE: dict[str, dict[Kind, dict[int, dict[int, list[Blocks]]]]] = {
    k: {d: {g: {w: [(64, 64, 4, 2)] for w in WIDTHS} for g in GENERATIONS} for d in ("bf16", "tf32", "ieee")}
    for k in ("forward", "backward_keys", "backward_queries", "backward_biases")
}
INTERPRETED = {
    "forward": (32, 16),
    "backward_keys": (16, 32),
    "backward_queries": (32, 16),
    "backward_biases": (16, 16),
}


def generation(capability: tuple[int, int]) -> int:
    """Of a GPU, in the table. Consumer cards after Hopper have the matrix instructions of sm_80 and no others."""
    major, _ = capability
    return {9: 90, 10: 100, 11: 100}.get(major, 80)


def candidates(kernel: str, kind: Kind, width: int, generation: int) -> list[triton.Config]:
    """What to try, best guess first. ``width`` is the padded one, the larger of keys and values."""
    return [_config(kernel, *blocks) for blocks in TABLE[kernel][kind][generation][max(width, WIDTHS[0])]]


def _config(kernel: str, rows: int, columns: int, warps: int, stages: int) -> triton.Config:
    sizes = {"BLOCK": rows} if kernel == "backward_biases" else {"BLOCK_M": rows, "BLOCK_N": columns}
    return triton.Config(sizes, num_warps=warps, num_stages=stages)


def _choose(kernel: str, configs: list[triton.Config], named: Any, **arguments: Any) -> list[triton.Config]:
    """Of all, those for this device and these arguments; one only where the same bits are asked of every run."""
    if interpreted():
        return [_config(kernel, *INTERPRETED[kernel], 4, 1)]
    kind: Kind = "bf16" if arguments["q_ptr"].dtype == torch.bfloat16 else arguments["PRECISION"]
    width = max(arguments["BLOCK_D"], arguments["BLOCK_V"])
    found = candidates(kernel, kind, width, generation(torch.cuda.get_device_capability()))
    return found[:1] if torch.are_deterministic_algorithms_enabled() else found


def _tuned(name: str, kernel: Any) -> Any:
    everything = [candidates(name, kind, width, g) for kind in TABLE[name] for g in GENERATIONS for width in WIDTHS]
    return triton.autotune(
        configs=[config for found in everything for config in found],
        key=["D", "V", "PRECISION"],
        prune_configs_by={"early_config_prune": partial(_choose, name)},
        cache_results=True,
    )(kernel)


forward = _tuned("forward", attention_forward)
backward_keys = _tuned("backward_keys", attention_backward_keys)
backward_queries = _tuned("backward_queries", attention_backward_queries)
backward_biases = _tuned("backward_biases", attention_backward_biases)
