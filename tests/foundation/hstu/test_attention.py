"""The reference attention against a naive one written from the definition, and what no information may pass."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.hstu.attention import dispatch
from foundation.hstu.attention.reference import TableGather, attention_mask, hstu_attention, time_buckets

SECOND = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """One batch of sequences ``[context, history, targets]`` and the arguments that attention takes."""

    lengths: list[tuple[int, int]]  # (history, targets) of each sequence
    context: int
    q: Tensor
    k: Tensor
    v: Tensor
    position_bias: Tensor
    time_bias: Tensor
    time: Tensor
    divisor: int = 11

    @property
    def sizes(self) -> list[int]:
        return [self.context + history + targets for history, targets in self.lengths]

    def attend(self) -> Tensor:
        return hstu_attention(
            self.q,
            self.k,
            self.v,
            torch.tensor([0, *self.sizes]).cumsum(0),
            max_seq_len=self.divisor,
            num_targets=torch.tensor([targets for _, targets in self.lengths], dtype=torch.int64),
            contextual_len=self.context,
            position_bias=self.position_bias,
            time_bias=self.time_bias,
            timestamps=self.time,
        )

    def leaves(self) -> list[Tensor]:
        return [self.q, self.k, self.v, self.position_bias, self.time_bias]


def case(
    lengths: list[tuple[int, int]],
    *,
    context: int = 2,
    heads: int = 2,
    width: int = 3,
    positions: int = 6,
    buckets: int = 24,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """Random numbers of order one, so that SiLU bends and an error is no smaller than what it spoils."""
    stream = torch.Generator().manual_seed(seed)
    tokens = sum(context + history + targets for history, targets in lengths)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream, dtype=torch.float64).to(dtype).requires_grad_()

    # Gaps from nothing to months, log-uniform: every bucket is reached.
    gaps = (torch.rand(tokens, generator=stream, dtype=torch.float64) * 16).exp() * SECOND
    return Case(
        lengths=lengths,
        context=context,
        q=normal(tokens, heads, width),
        k=normal(tokens, heads, width),
        v=normal(tokens, heads, width),
        position_bias=normal(positions),
        time_bias=normal(buckets),
        time=gaps.long().cumsum(0),
    )


def sees(query: int, key: int, *, context: int, first_target: int) -> bool:
    if key < context:
        return True  # context is seen by everyone: context, history and targets
    if query < context:
        return False
    if key < first_target:
        return key <= query  # history is causal
    return query == key  # a target is seen by itself only


def naive(given: Case) -> Tensor:
    """The definition, one pair of tokens at a time, in float64."""
    q, k, v, position_bias, time_bias = (leaf.double() for leaf in given.leaves())
    rows = []
    start = 0
    for size, (history, _) in zip(given.sizes, given.lengths, strict=True):
        first_target = given.context + history
        for i in range(size):
            by_head = []
            for head in range(q.shape[1]):
                total = torch.zeros(q.shape[2], dtype=torch.float64)
                for j in range(size):
                    if not sees(i, j, context=given.context, first_target=first_target):
                        continue
                    # All targets stand at the position right after the history.
                    distance = max(0, min(i, first_target) - min(j, first_target))
                    seconds = abs(int(given.time[start + i]) - int(given.time[start + j])) / SECOND
                    bucket = int(math.log(max(1.0, seconds)) / 0.301)
                    score = torch.dot(q[start + i, head], k[start + j, head]) / math.sqrt(q.shape[2])
                    score = score + position_bias[min(distance, len(position_bias) - 1)]
                    score = score + time_bias[min(bucket, len(time_bias) - 1)]
                    total = total + score / (1 + torch.exp(-score)) / given.divisor * v[start + j, head]
                by_head.append(total)
            rows.append(torch.stack(by_head))
        start += size
    return torch.stack(rows) if rows else torch.zeros_like(v)


def gradients(output: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Of a random projection of ``output``; zeros for leaves that it does not depend on."""
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad((output.double() * direction).sum(), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def assert_close(actual: Tensor, expected: Tensor, *, relative: float) -> None:
    """Largest error against the largest value: a tolerance that small outputs cannot hide behind."""
    if expected.numel():
        error = (actual.double() - expected.double()).abs().max()
        assert error <= relative * expected.double().abs().max().clamp(min=1e-30)


LENGTHS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    LENGTHS, st.integers(0, 2), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(1, 8), st.integers(0, 999)
)
def test_outputs_and_all_gradients(
    lengths: list[tuple[int, int]], context: int, heads: int, width: int, positions: int, seed: int
) -> None:
    made = case(
        lengths, context=context, heads=heads, width=width, positions=positions, buckets=positions * 4, seed=seed
    )
    actual, expected = made.attend(), naive(made)
    assert actual.shape == expected.shape
    assert_close(actual, expected, relative=1e-12)
    if sum(made.sizes):
        pairs = zip(gradients(actual, made.leaves()), gradients(expected, made.leaves()), strict=True)
        for mine, theirs in pairs:
            assert_close(mine, theirs, relative=1e-11)


def test_single_precision() -> None:
    made = case([(5, 3), (0, 2), (4, 0)], dtype=torch.float32)
    actual, expected = made.attend(), naive(made)
    assert actual.dtype == torch.float32
    assert_close(actual, expected, relative=1e-5)
    for mine, theirs in zip(gradients(actual, made.leaves()), gradients(expected, made.leaves()), strict=True):
        assert mine.dtype == torch.float32
        assert_close(mine, theirs, relative=1e-5)


def test_gradcheck() -> None:
    made = case([(2, 2), (0, 1)], context=1, width=2)

    def attend(q: Tensor, k: Tensor, v: Tensor, position_bias: Tensor, time_bias: Tensor) -> Tensor:
        return replace(made, q=q, k=k, v=v, position_bias=position_bias, time_bias=time_bias).attend()

    assert torch.autograd.gradcheck(attend, made.leaves())


def changed(given: Case, token: int) -> Case:
    """``given`` with other queries, keys and values at one token."""
    moved = {}
    for name in ("q", "k", "v"):
        moved[name] = getattr(given, name).detach().clone()
        moved[name][token] += 1.0
    return replace(given, **moved)


@settings(max_examples=40, deadline=None)
@given(LENGTHS.filter(lambda lengths: sum(h + t for h, t in lengths) > 0), st.integers(0, 2), st.data())
def test_a_token_reaches_those_that_see_it_and_no_others(
    lengths: list[tuple[int, int]], context: int, data: st.DataObject
) -> None:
    made = case(lengths, context=context)
    sequence = data.draw(st.sampled_from([b for b, size in enumerate(made.sizes) if size]))
    start, first_target = sum(made.sizes[:sequence]), context + lengths[sequence][0]
    token = data.draw(st.integers(0, made.sizes[sequence] - 1))
    before, after = made.attend(), changed(made, start + token).attend()
    for row in range(len(before)):
        own = start <= row < start + made.sizes[sequence]
        reached = own and sees(row - start, token, context=context, first_target=first_target)
        assert before[row].equal(after[row]) != reached


def test_no_information_from_the_future() -> None:
    made = case([(6, 2)])
    before = made.attend()
    for token in range(2, 8):
        after = changed(made, token).attend()
        assert before[:token].equal(after[:token])
        assert not before[token:8].equal(after[token:8])


def test_targets_do_not_see_one_another() -> None:
    made = case([(3, 4)])
    before = made.attend()
    for target in range(5, 9):
        after = changed(made, target).attend()
        others = [row for row in range(9) if row != target]
        assert before[others].equal(after[others])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(2, 4), st.integers(0, 2), st.data())
def test_swapping_two_targets_swaps_their_outputs_and_nothing_else(
    history: int, targets: int, context: int, data: st.DataObject
) -> None:
    made = case([(2, 1), (history, targets), (1, 2)], context=context)
    first = made.sizes[0] + context + history
    a, b = data.draw(st.lists(st.integers(first, first + targets - 1), min_size=2, max_size=2, unique=True))
    order = torch.arange(sum(made.sizes))
    order[a], order[b] = b, a
    swapped = replace(made, q=made.q[order], k=made.k[order], v=made.v[order], time=made.time[order])
    assert_close(swapped.attend(), made.attend()[order], relative=1e-14)


def test_the_number_of_targets_changes_nothing() -> None:
    many = case([(4, 5)])
    one = replace(
        many,
        lengths=[(4, 1)],
        **{name: getattr(many, name)[:7] for name in ("q", "k", "v", "time")},
    )
    assert_close(one.attend(), many.attend()[:7], relative=1e-14)


def test_a_batch_is_its_sequences_one_by_one() -> None:
    lengths = [(4, 2), (0, 0), (0, 3), (5, 0)]
    whole = case(lengths)
    parts, start = [], 0
    for one, size in zip(lengths, whole.sizes, strict=True):
        cut = {name: getattr(whole, name)[start : start + size] for name in ("q", "k", "v", "time")}
        parts.append(replace(whole, lengths=[one], **cut).attend())
        start += size
    assert_close(whole.attend(), torch.cat(parts), relative=1e-14)


def test_a_target_without_history_or_context_sees_itself_only() -> None:
    made = case([(0, 1)], context=0, heads=1)
    score = made.q[0, 0] @ made.k[0, 0] / math.sqrt(3) + made.position_bias[0] + made.time_bias[0]
    assert_close(made.attend()[0, 0], torch.nn.functional.silu(score) * made.v[0, 0] / 11, relative=1e-14)


@pytest.mark.parametrize("lengths", [[], [(0, 0)], [(0, 0), (0, 0)]])
def test_nothing_in_nothing_out(lengths: list[tuple[int, int]]) -> None:
    made = case(lengths, context=0)
    output = made.attend()
    assert output.shape == (0, 2, 3)
    assert output.dtype == torch.float64


def test_moving_all_times_changes_nothing() -> None:
    made = case([(5, 2)])
    assert made.attend().equal(replace(made, time=made.time + 10**15).attend())


def test_time_buckets_grow_with_the_logarithm() -> None:
    seconds = [0, 1, 2, 10, 3_600, 86_400, 10 * 365 * 86_400]
    times = torch.tensor([0, *(second * SECOND for second in seconds)])
    expected = [int(math.log(max(1, second)) / 0.301) for second in seconds]
    assert time_buckets(times, count=1000)[0, 1:].tolist() == expected
    assert time_buckets(times, count=20)[0, 1:].tolist() == [min(bucket, 19) for bucket in expected]
    assert time_buckets(times, count=1000).equal(time_buckets(times, count=1000).T)


def test_mask_of_one_sequence() -> None:
    # context 2, history 2, targets 2
    expected = [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0, 1],
    ]
    assert attention_mask(6, 2, 2).long().tolist() == expected


@given(st.lists(st.integers(0, 4), max_size=12))
def test_table_gather_is_indexing(index: list[int]) -> None:
    table = torch.randn(5, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor(index, dtype=torch.int64)
    weights = torch.arange(len(index), dtype=torch.float64) + 1
    gathered = TableGather.apply(table, rows)
    assert gathered.equal(table[rows])
    (mine,) = torch.autograd.grad((gathered * weights).sum(), table)
    (plain,) = torch.autograd.grad((table[rows] * weights).sum(), table)
    assert mine.equal(plain)


@pytest.mark.parametrize("backend", [name for name, why in dispatch.available().items() if why == "available"])
def test_every_available_backend_agrees(backend: str) -> None:
    made = case([(5, 2), (0, 1)], dtype=torch.float32, width=8)
    output = dispatch.hstu_attention(
        made.q,
        made.k,
        made.v,
        torch.tensor([0, *made.sizes]).cumsum(0),
        max_seq_len=made.divisor,
        num_targets=torch.tensor([2, 1]),
        contextual_len=made.context,
        position_bias=made.position_bias,
        time_bias=made.time_bias,
        timestamps=made.time,
        backend=backend,
    )
    assert_close(output, naive(made), relative=1e-5)
