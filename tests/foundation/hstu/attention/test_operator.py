"""The PyTorch operators: their schemas, shapes without data, autograd, and graphs compiled for any length."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from foundation.hstu.attention import dispatch, operator
from tests.foundation.hstu.attention.cases import Case, assert_close, gradients, make_case, offsets_of, split_rows

HERE = [name for name in ("blockwise", "cpu") if dispatch.available()[name] == "available"]
BIASES = [{}, {"positions": None}, {"buckets": None}, {"positions": None, "buckets": None}]
MASK = {"max_distance": 4, "full_tail": 1}


def arguments(made: Case, backend: str) -> tuple[Any, ...]:
    """What the operator takes, in order."""
    return (
        made.q,
        made.k,
        made.v,
        made.offsets,
        torch.tensor(made.targets),
        made.position_bias,
        made.time_bias,
        None if made.time_bias is None else made.time,
        made.divisor,
        made.context,
        made.max_distance,
        made.full_tail,
        0.5,
        backend,
    )


def cached_arguments(made: Case, backend: str) -> tuple[Any, ...]:
    stored = [before // 2 for before, _ in made.sequences]
    old, new = split_rows(made.sizes, stored)
    q, k, v, time = (value.detach() for value in (made.q, made.k, made.v, made.time))
    offsets = offsets_of([size - kept for size, kept in zip(made.sizes, stored, strict=True)])
    tables = (value if value is None else value.detach() for value in (made.position_bias, made.time_bias))
    times = (None, None) if made.time_bias is None else (time[new], time[old])
    return (
        *(q[new], k[new], v[new], offsets, k[old], v[old], offsets_of(stored), torch.tensor(made.targets)),
        *(*tables, *times),
        *arguments(made, backend)[8:],
    )


def detached(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in values)


@pytest.fixture(params=BIASES, ids=["both", "time only", "position only", "no bias"])
def made(request: pytest.FixtureRequest) -> Case:
    return make_case([(9, 2), (0, 1), (4, 0)], width=4, value_width=6, dtype=torch.float32, **MASK, **request.param)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("made", [{}, BIASES[-1]], indirect=True, ids=["both", "no bias"])
def test_operators_keep_their_word(made: Case, backend: str) -> None:
    torch.library.opcheck(operator.attention, arguments(made, backend))
    gradient = torch.ones_like(made.v)
    torch.library.opcheck(operator.attention_backward, (gradient, *detached(arguments(made, backend))))
    torch.library.opcheck(operator.attention_cached, cached_arguments(made, backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_are_known_without_data(made: Case, dtype: torch.dtype) -> None:
    made = made.cast(dtype, tables=torch.float32)
    gradient = torch.ones_like(made.v)
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (operator.attention, detached(arguments(made, "blockwise"))),
        (operator.attention_backward, (gradient, *detached(arguments(made, "blockwise")))),
        (operator.attention_cached, cached_arguments(made, "blockwise")),
    ]
    for call, values in calls:
        with FakeTensorMode() as mode:
            fake = call(*(mode.from_tensor(value) if isinstance(value, Tensor) else value for value in values))
        real = call(*values)
        described = [[(v.shape, v.dtype, v.stride()) for v in torch.utils._pytree.tree_leaves(r)] for r in (fake, real)]
        assert described[0] == described[1]


def attend(
    q: Tensor, k: Tensor, v: Tensor, position: Tensor, time: Tensor, offsets: Tensor, targets: Tensor, at: Tensor
) -> Tensor:
    """Attention among other operations, the backend chosen by itself."""
    attended = dispatch.hstu_attention(
        q.sin(),
        k,
        v,
        offsets,
        max_seq_len=11,
        num_targets=targets,
        contextual_len=2,
        position_bias=position,
        time_bias=time,
        timestamps=at,
        **MASK,
    )
    return attended.cos()


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_graph_for_all_lengths(compiler: str) -> None:
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend(compiler)
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=graphs)
    for sequences in ([(9, 2), (4, 0)], [(5, 1), (3, 3)], [(40, 0), (7, 7)]):
        made = make_case(sequences, dtype=torch.float32)
        given = (*made.leaves().values(), made.offsets, torch.tensor(made.targets), made.time)
        actual, expected = compiled(*given), attend(*given)
        assert_close(actual, expected, relative=1e-6)
        pairs = zip(gradients(actual, made.leaves()).items(), gradients(expected, made.leaves()).values(), strict=True)
        for (name, mine), theirs in pairs:
            assert_close(mine, theirs, relative=1e-6, name=name)
    assert graphs.frame_count == 1


def test_a_compiled_graph_checks_offsets_too() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    made = make_case([(9, 2), (4, 0)], dtype=torch.float32)
    for offsets, targets, words in (
        ([0, 11, 99], [2, 0], "offsets run from 0 to 99 for 15 tokens"),
        ([0, 11, 15], [2, 5], "num_targets"),
    ):
        with pytest.raises(ValueError, match=words):
            compiled(*made.leaves().values(), torch.tensor(offsets), torch.tensor(targets), made.time)


def test_a_second_derivative_is_refused() -> None:
    made = make_case([(5, 1)], dtype=torch.float32)
    (first,) = torch.autograd.grad(made.attend("blockwise").sum(), made.q, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        first.sum().backward()


def test_the_cached_form_has_no_gradient() -> None:
    output = make_case([(5, 1)], dtype=torch.float32).attend_cached([3], "blockwise")
    with pytest.raises(RuntimeError, match="autograd"):
        output.sum().backward()


def test_only_what_needs_a_gradient_gets_one() -> None:
    made = make_case([(5, 1)], dtype=torch.float32)
    leaves = made.leaves()
    for name in ("k", "time_bias"):
        leaves[name].requires_grad_(False)
    made.attend("blockwise").sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is not None} == {"q", "v", "position_bias"}
