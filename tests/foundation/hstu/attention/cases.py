"""What the tests of attention share: random cases, the float64 truth, and sizes of errors.

Shape legend: T tokens of all sequences, H heads, D width of queries and keys, V width of values, P entries of the table
by distance, K entries of the table by time.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from foundation.hstu.attention import dispatch, triton_backend

SECOND = 1_000_000
QKV = ("q", "k", "v", "offsets")


def placed(given: dict[str, Any], backend: str | None) -> dict[str, Any]:
    """``given`` with its tensors where ``backend`` computes, in the strides that they have.

    That is a GPU, where there is one, for Triton's kernels that are not interpreted.
    """
    if backend != "triton" or triton_backend.interpreted() or not torch.cuda.is_available():
        return given
    return {name: _on_gpu(value) if isinstance(value, Tensor) else value for name, value in given.items()}


def _on_gpu(value: Tensor) -> Tensor:
    if value.is_contiguous() or 0 in value.shape:
        return value.cuda()
    span = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return value.as_strided((span,), (1,)).cuda().as_strided(value.shape, value.stride())


@dataclass(frozen=True, kw_only=True, repr=False)
class Case:
    """One batch of sequences ``[context, history, targets]`` and everything that attention takes.

    ``sequences`` holds, of each, how many tokens stand before its targets and how many targets there are.
    """

    sequences: tuple[tuple[int, int], ...]
    q: Tensor
    k: Tensor
    v: Tensor
    time: Tensor
    position_bias: Tensor | None
    time_bias: Tensor | None
    context: int = 0
    max_distance: int | None = None
    full_tail: int = 0
    divisor: int = 11
    scale: float | None = None

    @property
    def sizes(self) -> list[int]:
        """Tokens of each sequence."""
        return [before + targets for before, targets in self.sequences]

    @property
    def targets(self) -> list[int]:
        """Targets of each sequence."""
        return [targets for _, targets in self.sequences]

    @property
    def offsets(self) -> Tensor:
        """int64 ``[B + 1]``."""
        return offsets_of(self.sizes)

    def __repr__(self) -> str:
        """The structure, without the numbers."""
        shapes = {name: list(leaf.shape) for name, leaf in self.leaves().items()}
        rule = {name: getattr(self, name) for name in ("context", "max_distance", "full_tail", "divisor", "scale")}
        return f"Case({self.sequences}, {shapes}, {rule}, {self.q.dtype})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis shows a failing case by this, and would show all numbers otherwise."""
        printer.text(repr(self))

    def options(self) -> dict[str, Any]:
        """The keyword arguments that whole and cached attention share."""
        return {
            "max_seq_len": self.divisor,
            "num_targets": torch.tensor(self.targets, dtype=torch.int64),
            "contextual_len": self.context,
            "max_distance": self.max_distance,
            "full_tail": self.full_tail,
            "position_bias": self.position_bias,
            "time_bias": self.time_bias,
            "timestamps": self.time,
            "scale": self.scale,
        }

    def attend(self, backend: str | None = "reference") -> Tensor:
        """``[T, H, V]``, on the CPU wherever it was computed."""
        given = placed({"q": self.q, "k": self.k, "v": self.v, "offsets": self.offsets} | self.options(), backend)
        arguments = [given.pop(name) for name in QKV]
        return dispatch.hstu_attention(*arguments, **given, backend=backend).cpu()

    def attend_cached(self, stored: list[int], backend: str | None = "reference") -> Tensor:
        """The rows of all but the first ``stored`` tokens of each sequence, over stored keys and values of those."""
        old, new = split_rows(self.sizes, stored)
        given = self.options() | {
            "q": self.q[new],
            "k": self.k[new],
            "v": self.v[new],
            "offsets": offsets_of([size - kept for size, kept in zip(self.sizes, stored, strict=True)]),
            "k_cache": self.k[old],
            "v_cache": self.v[old],
            "cache_offsets": offsets_of(stored),
            "timestamps": self.time[new],
            "cache_timestamps": self.time[old],
        }
        given = placed(given, backend)
        arguments = [given.pop(name) for name in (*QKV, "k_cache", "v_cache", "cache_offsets")]
        return dispatch.hstu_attention_cached(*arguments, **given, backend=backend).cpu()

    def leaves(self) -> dict[str, Tensor]:
        """What has a gradient, by name."""
        named = {name: getattr(self, name) for name in ("q", "k", "v", "position_bias", "time_bias")}
        return {name: leaf for name, leaf in named.items() if leaf is not None}

    def cast(self, dtype: torch.dtype, *, tables: torch.dtype | None = None) -> "Case":
        """The same numbers as leaves of another dtype; bias tables of ``tables`` if given."""
        cast = {}
        for name, leaf in self.leaves().items():
            kind = tables if tables is not None and name.endswith("bias") else dtype
            cast[name] = leaf.detach().to(kind).requires_grad_()
        return replace(self, **cast)

    def at(self, rows: Tensor, **changes: Any) -> "Case":
        """The tokens ``rows`` only, in that order."""
        return replace(self, **{name: getattr(self, name)[rows] for name in ("q", "k", "v", "time")}, **changes)


def make_case(
    sequences: list[tuple[int, int]],
    *,
    context: int = 2,
    heads: int = 2,
    width: int = 3,
    value_width: int | None = None,
    positions: int | None = 6,
    buckets: int | None = 24,
    max_distance: int | None = None,
    full_tail: int = 0,
    divisor: int = 11,
    scale: float | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """Random numbers of order one, so that SiLU bends and an error is no smaller than what it spoils.

    Numbers are rounded to bfloat16 first: the same case in another dtype holds the very same numbers.
    """
    stream = torch.Generator().manual_seed(seed)
    tokens = sum(before + targets for before, targets in sequences)

    def normal(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=stream, dtype=torch.float64)
        return drawn.to(torch.bfloat16).to(dtype).requires_grad_()

    # Gaps from nothing to months, log-uniform: every bucket is reached. Shuffled: timestamps come in any order.
    gaps = (torch.rand(tokens, generator=stream, dtype=torch.float64) * 16).exp() * SECOND
    return Case(
        sequences=tuple(sequences),
        q=normal(tokens, heads, width),
        k=normal(tokens, heads, width),
        v=normal(tokens, heads, width if value_width is None else value_width),
        time=gaps.long().cumsum(0)[torch.randperm(tokens, generator=stream)],
        position_bias=None if positions is None else normal(positions),
        time_bias=None if buckets is None else normal(buckets),
        context=context,
        max_distance=max_distance,
        full_tail=full_tail,
        divisor=divisor,
        scale=scale,
    )


def redraw(given: Case, seed: int) -> Case:
    """Other numbers in a case of the same structure."""
    sizes = {name: None if table is None else len(table) for name, table in _tables(given)}
    return make_case(
        list(given.sequences),
        context=given.context,
        heads=given.q.shape[1],
        width=given.q.shape[2],
        value_width=given.v.shape[2],
        positions=sizes["position_bias"],
        buckets=sizes["time_bias"],
        max_distance=given.max_distance,
        full_tail=given.full_tail,
        divisor=given.divisor,
        scale=given.scale,
        seed=seed,
        dtype=given.q.dtype,
    )


EDGES = (0, 1, 15, 63, 64, 65, 127, 129, 255, 256, 257, 320, 400)
"""Tokens before targets, around the sizes that blocks of keys and queries have."""


@st.composite
def cases(draw: st.DrawFn, *, before: st.SearchStrategy[int] | None = None, longest: int = 12) -> Case:
    """Cases in float64 of every kind: empty sequences, targets alone, a cut context, each bias or none, every mask."""
    before = st.integers(0, longest) if before is None else before
    lengths = st.tuples(before, st.sampled_from([0, 1, 2, 4, longest // 2]))
    widths = st.sampled_from([1, 2, 3, 5, 8, 16, 25, 33])
    return make_case(
        draw(st.lists(lengths, min_size=1, max_size=3)),
        context=draw(st.sampled_from([0, 0, 1, 3, longest // 2])),
        heads=draw(st.integers(1, 3)),
        width=draw(widths),
        value_width=draw(widths),
        positions=draw(st.sampled_from([None, 1, 4, 2 * longest])),
        buckets=draw(st.sampled_from([None, 1, 16, 64])),
        max_distance=draw(st.one_of(st.none(), st.integers(0, longest))),
        full_tail=draw(st.sampled_from([0, 0, 1, 3, longest // 2])),
        divisor=draw(st.sampled_from([1, 7, 64])),
        scale=draw(st.sampled_from([None, 0.3])),
        seed=draw(st.integers(0, 999)),
    )


def long_cases() -> st.SearchStrategy[Case]:
    """:func:`cases` that fill several blocks and parts of some."""
    return cases(before=st.sampled_from(EDGES), longest=300)


def changed(given: Case, token: int) -> Case:
    """``given`` with other queries, keys and values at one token."""
    moved = {}
    for name in ("q", "k", "v"):
        moved[name] = getattr(given, name).detach().clone()
        moved[name][token] += 1.0
    return replace(given, **moved)


def offsets_of(lengths: list[int]) -> Tensor:
    """int64 ``[B + 1]``."""
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)


def split_rows(sizes: list[int], stored: list[int]) -> tuple[Tensor, Tensor]:
    """Which tokens of a batch are the first ``stored`` of their sequence, and which are not; int64 both."""
    index = torch.cat([torch.arange(size) < kept for size, kept in zip(sizes, stored, strict=True)])
    return index.nonzero()[:, 0], (~index).nonzero()[:, 0]


def gradients(output: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a random projection of ``output``; zeros for leaves that it does not depend on."""
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # The same numbers in every dtype, as make_case has it.
    direction = direction.to(torch.bfloat16).to(output.dtype)
    found = torch.autograd.grad(output, list(leaves.values()), direction, allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    return {name: torch.zeros_like(leaf) if gradient is None else gradient for (name, leaf), gradient in pairs}


def results(given: Case, backend: str) -> dict[str, Tensor]:
    """Output and every gradient, by name."""
    output = given.attend(backend)
    if not output.requires_grad:  # not a single token
        return {"output": output} | {name: torch.zeros_like(leaf) for name, leaf in given.leaves().items()}
    return {"output": output.detach()} | gradients(output, given.leaves())


def truth(given: Case) -> dict[str, Tensor]:
    """Output and every gradient by the reference in float64."""
    return results(given.cast(torch.float64), "reference")


def sizes_of_results(given: Case) -> dict[str, float]:
    """How large outputs and gradients of such a case are: the largest value over three draws.

    A sum of many terms may cancel; its error is to be measured by what such sums are in general, not by what is left.
    """
    draws = [truth(given), *(truth(redraw(given, seed)) for seed in (1001, 1002))]
    return {name: max(largest(draw[name]) for draw in draws) for name in draws[0]}


def largest(values: Tensor) -> float:
    """Largest absolute value; 0 of nothing."""
    return float(values.detach().double().abs().max()) if values.numel() else 0.0


def assert_close(
    actual: Tensor, expected: Tensor, *, relative: float, size: float | None = None, name: str = ""
) -> None:
    """Largest error against the largest value (or ``size``): a tolerance that small values cannot hide behind."""
    assert actual.shape == expected.shape, name
    error = largest(actual.double() - expected.double())
    allowed = relative * max(largest(expected) if size is None else size, 1e-30)
    assert error <= allowed, f"{name}: largest error {error:.3g}, allowed {allowed:.3g}"


def assert_results_close(given: Case, backend: str, *, relative: float) -> None:
    """Output and every gradient of ``given`` on ``backend`` against float64, and their dtypes."""
    actual, expected, sizes = results(given, backend), truth(given), sizes_of_results(given)
    dtypes = {"output": given.v.dtype} | {name: leaf.dtype for name, leaf in given.leaves().items()}
    assert {name: value.dtype for name, value in actual.items()} == dtypes
    for name, value in expected.items():
        assert_close(actual[name], value, relative=relative, size=sizes[name], name=name)


def _tables(given: Case) -> list[tuple[str, Tensor | None]]:
    return [("position_bias", given.position_bias), ("time_bias", given.time_bias)]
