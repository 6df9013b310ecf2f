"""The contract of every backend: what the reference gives in float64, for everything that the signature allows."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.hstu.attention import dispatch, triton_backend
from tests.foundation.hstu.attention.cases import (
    Case,
    assert_close,
    assert_results_close,
    cases,
    changed,
    largest,
    long_cases,
    make_case,
    results,
    sizes_of_results,
    split_rows,
    truth,
)
from tests.foundation.hstu.attention.definition import sees

EXAMPLES = {"blockwise": 60, "cpu": 80, "triton": 8 if triton_backend.interpreted() else 40}
"""How many random cases each backend is held against; triton's interpreter takes seconds for one, and on a GPU many a
case is a kernel to be compiled.
"""

HERE = [name for name in EXAMPLES if dispatch.available()[name] == "available"]

SINGLE = 1e-5
"""Error allowed in float32, as a share of the largest value."""

DISTANT = {"max_distance": 70, "full_tail": 20}


@pytest.fixture(params=HERE)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def for_all(backend: str, strategy: st.SearchStrategy, check: Callable[[Case], None], *, share: float = 1.0) -> None:
    """Hold ``check`` against random cases, ``share`` of the number that the backend can afford."""
    count = max(3, round(EXAMPLES[backend] * share))

    @settings(max_examples=count, deadline=None)
    @given(strategy)
    def run(drawn: Case) -> None:
        check(drawn)

    run()


def single(made: Case) -> Case:
    return made.cast(torch.float32)


def test_output_and_every_gradient(backend: str) -> None:
    for_all(backend, cases(), lambda made: assert_results_close(single(made), backend, relative=SINGLE))


def test_output_and_every_gradient_over_several_blocks(backend: str) -> None:
    check = lambda made: assert_results_close(single(made), backend, relative=SINGLE)  # noqa: E731
    for_all(backend, long_cases(), check, share=0.15)


@pytest.mark.parametrize(
    "made",
    [
        make_case([(1, 0)], context=0),
        make_case([(321, 9), (0, 3), (0, 0), (64, 65)], width=32, positions=700, buckets=64),
        make_case([(513, 0), (255, 1)], heads=1, width=50, value_width=33, positions=None, **DISTANT),
        make_case([(300, 290)], context=130, width=16, buckets=None, max_distance=17),
        make_case([(400, 30)], context=0, heads=3, width=7, value_width=64, positions=None, buckets=None, full_tail=5),
    ],
    ids=["one token", "ragged", "distance and tail", "long context and many targets", "no bias"],
)
def test_shapes_that_matter(backend: str, made: Case) -> None:
    assert_results_close(single(made), backend, relative=SINGLE)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [{}, DISTANT, {"max_distance": 1000}])
def test_long_sequences(backend: str, mask: dict[str, int]) -> None:
    made = make_case([(2000, 48), (1025, 600)], width=64, positions=1500, buckets=64, divisor=2048, **mask)
    assert_results_close(single(made), backend, relative=SINGLE)


@pytest.mark.parametrize("lengths", [[], [(0, 0)], [(0, 0), (0, 0)]])
def test_nothing_in_nothing_out(backend: str, lengths: list[tuple[int, int]]) -> None:
    made = make_case(lengths, dtype=torch.float32, value_width=5)
    output = made.attend(backend)
    assert output.shape == (0, 2, 5) and output.dtype == torch.float32
    output.sum().backward()
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in made.leaves().values())


@pytest.mark.parametrize("lengths", [[(12, 3), (0, 2), (7, 0)], [(321, 9), (0, 0), (70, 3)]])
@pytest.mark.parametrize("mask", [{}, {"max_distance": 9, "full_tail": 2}])
def test_bfloat16_errs_no_more_than_its_reference(
    backend: str, lengths: list[tuple[int, int]], mask: dict[str, int]
) -> None:
    """Twice the error of the bfloat16 reference at most, five times in gradients; errors as root mean squares.

    Rounding the exact result to bfloat16 is always allowed: 2^-9 of the size of results.
    """
    made = make_case(lengths, width=16, value_width=9, **mask)
    low = made.cast(torch.bfloat16, tables=torch.float32)
    actual, plain, exact, sizes = results(low, backend), results(low, "reference"), truth(made), sizes_of_results(made)
    for name, value in exact.items():
        assert actual[name].dtype == plain[name].dtype
        mine, theirs = rms(actual[name].double() - value), rms(plain[name].double() - value)
        assert mine <= (2 if name == "output" else 5) * theirs + 2**-9 * sizes[name], name


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def test_bfloat16_sums_in_single_precision(backend: str) -> None:
    # Summed in bfloat16, a sum of ones stops growing at 256.
    made = make_case([(700, 0)], context=0, heads=1, width=1, positions=None, buckets=None, divisor=1)
    ones = torch.ones(700, 1, 1)
    made = replace(made, q=ones, k=ones, v=ones).cast(torch.bfloat16)
    assert_close(made.attend(backend)[:, 0, 0], torch.arange(1, 701) * torch.sigmoid(torch.tensor(1.0)), relative=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_twice(backend: str, dtype: torch.dtype) -> None:
    made = make_case([(321, 9), (0, 3), (64, 65)], width=16, max_distance=100).cast(dtype, tables=torch.float32)
    first, second = results(made, backend), results(made, backend)
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.skipif("cpu" not in HERE, reason="no compiled kernels here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_on_any_number_of_threads(dtype: torch.dtype) -> None:
    made = make_case([(321, 9), (0, 3), (64, 65)], width=16, max_distance=100).cast(dtype, tables=torch.float32)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(results(made, "cpu"))
    finally:
        torch.set_num_threads(threads)
    assert all(found[0][name].equal(other[name]) for other in found[1:] for name in other)


def test_a_token_reaches_those_that_see_it_and_no_others(backend: str) -> None:
    def check(made: Case) -> None:
        made = single(made)
        sequence = max(range(len(made.sizes)), key=made.sizes.__getitem__)
        start, size, targets = sum(made.sizes[:sequence]), made.sizes[sequence], made.targets[sequence]
        before = made.attend(backend)
        for token in {0, size // 2, size - targets - 1, size - 1} & set(range(size)):
            after = changed(made, start + token).attend(backend)
            for row in range(len(before)):
                own = start <= row < start + size
                reached = own and sees(row - start, token, length=size, targets=targets, given=made)
                assert before[row].equal(after[row]) != reached

    for_all(backend, cases(), check, share=0.3)


def test_swapping_two_targets_swaps_their_outputs_and_nothing_else(backend: str) -> None:
    made = make_case([(3, 1), (70, 80), (1, 2)], width=8, max_distance=50, dtype=torch.float32)
    before = results(made, backend)
    for a, b in [(74, 75), (74, 153), (90, 140)]:
        order = torch.arange(len(made.q))
        order[a], order[b] = b, a
        output = made.at(order).attend(backend)
        others = [row for row in range(len(order)) if row not in (a, b)]
        assert output[others].equal(before["output"][others])
        assert_close(output[[a, b]], before["output"][[b, a]], relative=1e-6)
        assert not output[a].equal(before["output"][a])


def test_nan_in_one_sequence_reaches_no_other(backend: str) -> None:
    made = make_case([(70, 5), (65, 3), (0, 2), (30, 0)], width=8, dtype=torch.float32)
    before = results(made, backend)
    spoilt = {name: getattr(made, name).detach().clone() for name in ("q", "k", "v")}
    for values in spoilt.values():
        values[75:143] = float("nan")
    after = results(replace(made, **spoilt).cast(torch.float32), backend)
    others = [row for row in range(len(made.q)) if not 75 <= row < 143]
    for name in ("output", "q", "k", "v"):
        assert after[name][others].equal(before[name][others]), name
        assert after[name][75:143].isnan().any(), name


def test_a_batch_is_its_sequences_one_by_one(backend: str) -> None:
    whole = make_case([(70, 2), (0, 0), (0, 3), (321, 0)], dtype=torch.float32)
    rows = torch.arange(len(whole.q)).split(whole.sizes)
    parts = [whole.at(own, sequences=(one,)).attend(backend) for own, one in zip(rows, whole.sequences, strict=True)]
    assert_close(whole.attend(backend), torch.cat(parts), relative=1e-6)


def fused(made: Case, *, contiguous: bool) -> tuple[Case, Tensor]:
    """``made`` with q, k and v as slices of one ``[T, 4 * H * D]`` tensor, as a fused projection gives them."""
    tokens, heads, width = made.q.shape
    gate = torch.zeros(tokens, heads * width)
    projected = torch.cat([gate, *(made.leaves()[name].detach().flatten(1) for name in ("v", "q", "k"))], dim=1)
    projected.requires_grad_()
    _, v, q, k = (part.view(tokens, heads, width) for part in projected.split(heads * width, dim=1))
    if contiguous:
        v, q, k = v.contiguous(), q.contiguous(), k.contiguous()
    return replace(made, q=q, k=k, v=v), projected


def test_views_of_a_fused_projection(backend: str) -> None:
    made = make_case([(130, 3), (5, 0)], width=8, dtype=torch.float32)
    (views, source), (copies, copy) = fused(made, contiguous=False), fused(made, contiguous=True)
    assert not views.q.is_contiguous()
    actual, expected = views.attend(backend), copies.attend(backend)
    assert_close(actual, expected, relative=1e-6)
    # The gradient of a sum is one number expanded: strides of 0.
    (mine,), (theirs,) = (torch.autograd.grad(out.sum(), leaf) for out, leaf in ((actual, source), (expected, copy)))
    assert_close(mine, theirs, relative=1e-6)
    assert mine.any()


def test_any_order_of_dimensions_in_memory(backend: str) -> None:
    made = make_case([(70, 3), (5, 0)], width=8, value_width=6, dtype=torch.float32)
    strided = {
        name: leaf.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0)
        for name, leaf in made.leaves().items()
        if not name.endswith("bias")
    }
    assert_close(replace(made, **strided).attend(backend), made.attend(backend), relative=1e-6)
    assert_close(replace(made, **strided).attend_cached([60, 2], backend), made.attend_cached([60, 2]), relative=SINGLE)


def test_cached_is_the_last_rows_of_whole_sequences(backend: str) -> None:
    def check(made: Case) -> None:
        made = single(made)
        expected, size = truth(made)["output"], sizes_of_results(made)["output"]
        befores = [before for before, _ in made.sequences]
        for stored in (befores, [0] * len(befores), [before // 3 for before in befores]):
            new = split_rows(made.sizes, stored)[1]
            assert_close(made.attend_cached(stored, backend), expected[new], relative=SINGLE, size=size)

    for_all(backend, cases(), check, share=0.3)
    for_all(backend, long_cases(), check, share=0.1)


def test_cached_without_a_new_token(backend: str) -> None:
    made = make_case([(7, 0), (3, 0)], dtype=torch.float32)
    assert made.attend_cached([7, 3], backend).shape == (0, 2, 3)


@pytest.mark.parametrize("mask", [{}, {"max_distance": 30}, {"max_distance": 30, "full_tail": 1}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_history_is_encoded_extended_and_asked_about(backend: str, mask: dict[str, int], dtype: torch.dtype) -> None:
    """Three calls, each over what the calls before have stored: encoded, extended by new events, then targets."""
    made = make_case([(150, 40), (9, 2)], width=8, **mask).cast(dtype, tables=torch.float32)
    steps = [[0, 0], [100, 4], [150, 9], [190, 11]]
    # The tail that sees everything ends where the history ends: only with the whole history is it the same tail.
    if made.full_tail:
        steps = [[0, 0], [150, 9], [190, 11]]
    whole, size = made.attend(backend), largest(truth(made)["output"])
    for known, seen in itertools.pairwise(steps):
        own = torch.arange(len(made.q)).split(made.sizes)
        rows = torch.cat([rows[old:end] for rows, old, end in zip(own, known, seen, strict=True)])
        actual = up_to(made, seen).attend_cached(known, backend)
        relative = 1e-6 if dtype == torch.float32 else 2**-8
        assert_close(actual, whole[rows], relative=relative, size=size)


def up_to(made: Case, seen: list[int]) -> Case:
    """The first ``seen`` tokens of each sequence."""
    sequences = tuple(
        (min(before, end), max(0, end - before)) for (before, _), end in zip(made.sequences, seen, strict=True)
    )
    return made.at(split_rows(made.sizes, seen)[0], sequences=sequences)
