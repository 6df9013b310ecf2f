"""What each kernel would do for one layer: its error, expected and measured, its time and its size.

Shape legend: N rows, I inputs, O outputs, R rows of a table, D width.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from foundation.hstu.embedding import FeatureEmbedding
from foundation.hstu.vocabulary import Slots
from hypercast.serving.precision.kernels import KERNELS, Float32, KernelName, LinearKernel
from hypercast.serving.precision.probe import Seen
from hypercast.serving.precision.report import Option
from hypercast.serving.precision.tables import CompactTable, Quantised, quantised

Timer = Callable[[Mapping[str, Callable[[], object]]], dict[str, float]]
"""Microseconds of each of several things that do the same."""


def in_turn(contestants: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """The least of ``rounds`` rounds after one to warm up; a round runs each once, so that all meet the same machine.

    What others do on the machine makes a kernel slower, never faster: the least is what says most of the kernel.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            begun = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begun)
    return {name: 1e6 * min(each) for name, each in seconds.items()}


def linear_options(
    layer: nn.Linear, seen: Seen, *, kernels: Sequence[KernelName], keep: bool, timer: Timer
) -> tuple[dict[str, Option], dict[str, LinearKernel]]:
    """Float32 and ``kernels`` for ``layer``, on the inputs that ``seen`` has kept, as often as makes a usual call."""
    input_NI = seen.kept_NI()
    built: dict[str, LinearKernel] = {
        name: KERNELS[name].of(layer.weight, layer.bias, keep=keep) for name in ("float32", *kernels)
    }
    expected_NO = built["float32"](input_NI)
    call_NI = input_NI[torch.arange(max(1, seen.typical_rows)) % len(input_NI)]
    times = timer({name: partial(kernel, call_NI) for name, kernel in built.items()})
    options = {
        name: Option(
            error=relative_error(kernel(input_NI), expected_NO),
            predicted=kernel.predicted_error(seen.inputs, seen.outputs),
            microseconds=times[name],
            nbytes=kernel.nbytes,
        )
        for name, kernel in built.items()
    }
    return options, {name: kernel for name, kernel in built.items() if not isinstance(kernel, Float32)}


def table_options(
    table: FeatureEmbedding, asked: Sequence[Slots], *, names: Sequence[Quantised], timer: Timer
) -> tuple[dict[str, Option], dict[str, CompactTable]]:
    """Float32 and ``names`` for ``table``, on the bags that it was asked for; timed on the middle one of the calls."""
    built: dict[str, CompactTable] = {name: quantised(table.weight, name) for name in names}
    usual = sorted(asked, key=lambda slots: len(slots.row_I))[len(asked) // 2]
    either: dict[str, nn.Module] = {"float32": table, **built}
    times = timer({name: partial(each, usual) for name, each in either.items()})
    expected = torch.cat([table(slots) for slots in asked])
    options = {
        name: Option(
            error=relative_error(torch.cat([each(slots) for slots in asked]), expected),
            microseconds=times[name],
            nbytes=each.nbytes if isinstance(each, CompactTable) else table.weight.nbytes,
        )
        for name, each in either.items()
    }
    return options, built


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, against that of what is expected."""
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp(min=1e-30))
