"""The kernels, each with the block sizes to try: by how numbers are multiplied, generation of GPU and width.

Shared memory bounds block sizes (163 KB for a program of sm_80, 227 KB of sm_90 and sm_100), and registers do before:
a configuration stands here only if it compiles, with every feature on, without spilling registers to memory, which
tests hold. The first of each row is the best guess; in rows of sm_80 it fits the 99 KB of consumer cards too, which use
these rows.

Float32 multiplied exactly (``ieee``) does not run on matrix units, and Triton keeps its operands in registers: blocks
are tiny, and it is slow by design. Who can spare the digits sets ``torch.set_float32_matmul_precision("high")``.
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
WIDTHS = (32, 64, 128)

TABLE: dict[tuple[str, Kind, int], dict[int, list[Blocks]]] = {
    ("forward", "bf16", 80): {
        32: [(128, 32, 8, 3), (64, 32, 4, 3)],
        64: [(128, 64, 8, 3), (64, 64, 4, 3), (128, 32, 8, 3)],
        128: [(128, 32, 8, 3), (64, 32, 4, 3)],
    },
    ("forward", "bf16", 90): {
        32: [(64, 64, 8, 3), (64, 32, 4, 3), (128, 32, 8, 3)],
        64: [(64, 64, 4, 3), (128, 64, 8, 3), (64, 32, 4, 3)],
        128: [(128, 32, 8, 3), (64, 32, 4, 3)],
    },
    ("forward", "bf16", 100): {
        32: [(128, 32, 8, 3), (64, 32, 4, 3)],
        64: [(128, 64, 8, 3), (128, 32, 8, 3)],
        128: [(128, 32, 8, 3), (64, 32, 4, 3)],
    },
    ("forward", "tf32", 80): {
        32: [(128, 32, 8, 3), (64, 32, 4, 3)],
        64: [(128, 32, 8, 3), (64, 32, 4, 3)],
        128: [(64, 32, 4, 2), (128, 32, 8, 3)],
    },
    ("forward", "tf32", 90): {
        32: [(128, 32, 8, 3), (64, 32, 4, 3)],
        64: [(128, 32, 8, 3), (64, 32, 4, 3)],
        128: [(32, 32, 4, 2), (32, 16, 4, 2)],
    },
    ("forward", "tf32", 100): {
        32: [(128, 32, 8, 3), (64, 32, 4, 3)],
        64: [(128, 32, 8, 3), (64, 32, 4, 3)],
        128: [(128, 32, 8, 3)],
    },
    ("forward", "ieee", 80): {32: [(32, 16, 4, 2)], 64: [(32, 16, 4, 2)], 128: [(16, 16, 4, 2)]},
    ("forward", "ieee", 90): {32: [(16, 16, 4, 2)], 64: [(32, 16, 4, 2)], 128: [(16, 16, 4, 2)]},
    ("forward", "ieee", 100): {32: [(32, 16, 4, 2)], 64: [(16, 16, 4, 2)], 128: [(16, 16, 8, 2)]},
    ("cached", "bf16", 80): {32: [(64, 32, 4, 2)], 64: [(64, 32, 4, 2)], 128: [(64, 32, 4, 2)]},
    ("cached", "bf16", 90): {32: [(64, 32, 4, 2)], 64: [(64, 32, 4, 2)], 128: [(64, 32, 4, 2)]},
    ("cached", "bf16", 100): {32: [(64, 32, 4, 2)], 64: [(64, 32, 4, 2)], 128: [(64, 32, 4, 2)]},
    ("cached", "tf32", 80): {32: [(64, 32, 4, 2)], 64: [(64, 32, 4, 2)], 128: [(32, 32, 4, 2)]},
    ("cached", "tf32", 90): {32: [(64, 32, 4, 2)], 64: [(64, 32, 4, 2)], 128: [(32, 32, 4, 2)]},
    ("cached", "tf32", 100): {32: [(64, 32, 4, 2)], 64: [(64, 32, 4, 2)], 128: [(32, 32, 4, 2)]},
    ("cached", "ieee", 80): {32: [(16, 16, 4, 2)], 64: [(16, 16, 4, 2)], 128: [(16, 16, 8, 2)]},
    ("cached", "ieee", 90): {32: [(16, 16, 4, 2)], 64: [(16, 16, 4, 2)], 128: [(16, 16, 8, 2)]},
    ("cached", "ieee", 100): {32: [(16, 16, 4, 2)], 64: [(16, 16, 8, 2)], 128: [(16, 16, 8, 2)]},
    ("backward_keys", "bf16", 80): {
        32: [(32, 64, 4, 2), (16, 128, 8, 2)],
        64: [(16, 128, 8, 2), (16, 64, 4, 2)],
        128: [(64, 64, 8, 2), (32, 64, 8, 2)],
    },
    ("backward_keys", "bf16", 90): {
        32: [(32, 64, 4, 2), (64, 64, 8, 2)],
        64: [(32, 64, 4, 2), (64, 64, 8, 2)],
        128: [(32, 64, 8, 2), (32, 32, 4, 2)],
    },
    ("backward_keys", "bf16", 100): {
        32: [(64, 64, 8, 2), (32, 64, 4, 2)],
        64: [(64, 64, 8, 2), (64, 128, 8, 2)],
        128: [(64, 64, 8, 2), (32, 64, 8, 2)],
    },
    ("backward_keys", "tf32", 80): {
        32: [(32, 64, 8, 2), (32, 32, 4, 2)],
        64: [(32, 64, 8, 2), (16, 64, 4, 2)],
        128: [(32, 32, 4, 2), (32, 64, 8, 2)],
    },
    ("backward_keys", "tf32", 90): {
        32: [(32, 64, 8, 2), (16, 64, 4, 2)],
        64: [(32, 64, 8, 2), (16, 64, 4, 2)],
        128: [(16, 32, 4, 2)],
    },
    ("backward_keys", "tf32", 100): {
        32: [(32, 64, 8, 2), (16, 16, 4, 2)],
        64: [(32, 64, 8, 2), (16, 64, 4, 2)],
        128: [(16, 32, 4, 2)],
    },
    ("backward_keys", "ieee", 80): {32: [(16, 32, 4, 2)], 64: [(16, 16, 4, 2)], 128: [(16, 16, 4, 2)]},
    ("backward_keys", "ieee", 90): {32: [(16, 16, 4, 2)], 64: [(16, 16, 8, 2)], 128: [(16, 16, 8, 2)]},
    ("backward_keys", "ieee", 100): {32: [(16, 16, 4, 2)], 64: [(16, 16, 8, 2)], 128: [(16, 16, 8, 2)]},
    ("backward_queries", "bf16", 80): {
        32: [(64, 64, 8, 2), (64, 32, 8, 2)],
        64: [(128, 32, 8, 2), (64, 32, 4, 2)],
        128: [(64, 64, 8, 2), (64, 32, 4, 2)],
    },
    ("backward_queries", "bf16", 90): {
        32: [(64, 64, 8, 2), (64, 32, 4, 2)],
        64: [(64, 64, 4, 2), (128, 64, 8, 2)],
        128: [(64, 32, 8, 2), (32, 32, 4, 2)],
    },
    ("backward_queries", "bf16", 100): {
        32: [(64, 64, 8, 2), (64, 32, 8, 2)],
        64: [(128, 64, 8, 2), (64, 64, 8, 2)],
        128: [(64, 64, 8, 2), (64, 32, 4, 2)],
    },
    ("backward_queries", "tf32", 80): {
        32: [(64, 64, 8, 2), (64, 32, 4, 2)],
        64: [(64, 32, 4, 2), (32, 32, 4, 2)],
        128: [(32, 32, 4, 2), (64, 64, 8, 2)],
    },
    ("backward_queries", "tf32", 90): {
        32: [(64, 64, 8, 2), (64, 32, 4, 2)],
        64: [(64, 64, 8, 2), (64, 32, 4, 2)],
        128: [(32, 32, 4, 2), (32, 16, 4, 2)],
    },
    ("backward_queries", "tf32", 100): {
        32: [(64, 64, 8, 2), (64, 32, 4, 2)],
        64: [(64, 64, 8, 2), (64, 32, 4, 2)],
        128: [(32, 32, 4, 2), (32, 16, 4, 2)],
    },
    ("backward_queries", "ieee", 80): {32: [(16, 16, 8, 2)], 64: [(16, 16, 4, 2)], 128: [(16, 16, 4, 2)]},
    ("backward_queries", "ieee", 90): {32: [(32, 16, 4, 2)], 64: [(32, 16, 4, 2)], 128: [(32, 16, 4, 2)]},
    ("backward_queries", "ieee", 100): {32: [(32, 16, 4, 2)], 64: [(32, 16, 4, 2)], 128: [(32, 16, 4, 2)]},
    ("backward_biases", "bf16", 80): {
        32: [(32, 32, 4, 2)],
        64: [(32, 32, 4, 2)],
        128: [(32, 32, 4, 2)],
    },
    ("backward_biases", "bf16", 90): {
        32: [(32, 32, 4, 2)],
        64: [(32, 32, 4, 2)],
        128: [(32, 32, 4, 2)],
    },
    ("backward_biases", "bf16", 100): {
        32: [(32, 32, 4, 2)],
        64: [(32, 32, 4, 2)],
        128: [(32, 32, 4, 2)],
    },
    ("backward_biases", "tf32", 80): {32: [(32, 32, 4, 2)], 64: [(32, 32, 4, 2)], 128: [(16, 16, 4, 2)]},
    ("backward_biases", "tf32", 90): {32: [(32, 32, 4, 2)], 64: [(32, 32, 4, 2)], 128: [(32, 32, 4, 2)]},
    ("backward_biases", "tf32", 100): {32: [(32, 32, 4, 2)], 64: [(32, 32, 4, 2)], 128: [(32, 32, 4, 2)]},
    ("backward_biases", "ieee", 80): {32: [(32, 32, 8, 2)], 64: [(32, 32, 8, 2)], 128: [(32, 32, 8, 2)]},
    ("backward_biases", "ieee", 90): {32: [(32, 32, 8, 2)], 64: [(32, 32, 8, 2)], 128: [(16, 16, 4, 2)]},
    ("backward_biases", "ieee", 100): {32: [(32, 32, 8, 2)], 64: [(32, 32, 8, 2)], 128: [(16, 16, 4, 2)]},
}
INTERPRETED = {
    "forward": (32, 16),
    "cached": (16, 32),
    "backward_keys": (16, 32),
    "backward_queries": (32, 16),
    "backward_biases": (16, 16),
}


def generation(capability: tuple[int, int]) -> int:
    """Of a GPU, in the table. Consumer cards after Hopper have the matrix instructions of sm_80 and no others."""
    major, _ = capability
    return {9: 90, 10: 100, 11: 100}.get(major, 80)


def candidates(kernel: str, kind: Kind, width: int, generation: int) -> list[triton.Config]:
    """What to try, best guess first. ``width`` is a power of two, the larger of keys and values."""
    return [_config(kernel, *blocks) for blocks in TABLE[kernel, kind, generation][max(width, WIDTHS[0])]]


def _config(kernel: str, rows: int, columns: int, warps: int, stages: int) -> triton.Config:
    sizes = {"BLOCK": rows} if kernel == "backward_biases" else {"BLOCK_M": rows, "BLOCK_N": columns}
    return triton.Config(sizes, num_warps=warps, num_stages=stages)


def choose(kernel: str, configs: list[triton.Config], named: Any, **arguments: Any) -> list[triton.Config]:
    """Of all, those for this device and these arguments; one only where the same bits are asked of every run."""
    if interpreted():
        return [_config(kernel, *INTERPRETED[kernel], 4, 1)]
    kind: Kind = "bf16" if arguments["q_ptr"].dtype == torch.bfloat16 else arguments["PRECISION"]
    width = max(arguments["D"], arguments["V"])
    found = candidates(kernel, kind, width, generation(torch.cuda.get_device_capability()))
    return found[:1] if torch.are_deterministic_algorithms_enabled() else found


def _tuned(name: str, kernel: Any) -> Any:
    rows = [rows for (kernel_name, *_), rows in TABLE.items() if kernel_name == name]
    everything = {blocks for by_width in rows for found in by_width.values() for blocks in found}
    return triton.autotune(
        configs=[_config(name, *blocks) for blocks in sorted(everything)],
        key=["D", "V", "PRECISION"],
        prune_configs_by={"early_config_prune": partial(choose, name)},
        cache_results=True,
    )(kernel)


forward = _tuned("forward", attention_forward)
cached = _tuned("cached", attention_forward)  # few rows over many stored keys
backward_keys = _tuned("backward_keys", attention_backward_keys)
backward_queries = _tuned("backward_queries", attention_backward_queries)
backward_biases = _tuned("backward_biases", attention_backward_biases)
