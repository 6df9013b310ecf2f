"""Target attention is a loop over a candidate's own events; without events it is nothing."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from experts.attention import AGE_BUCKETS, DAY, TargetAttention
from hypercast.training.random import initialise_
from streaming.batch import History

WIDTH, ITEMS, ACTIONS, SURFACES = 3, 5, 2, 2
LENGTH = 8  # a power of two: its inverse is exact in single precision


def attention() -> TargetAttention:
    made = TargetAttention(width=WIDTH, length=LENGTH, actions=ACTIONS, surfaces=SURFACES)
    initialise_(made, 0)
    with torch.no_grad():
        made.age_bias.copy_(torch.linspace(-1, 1, AGE_BUCKETS))
        made.query.bias.fill_(0.3)
        made.key_value.bias.fill_(-0.2)
    return made.double()


class Case:
    """Requests with so many events and candidates each."""

    def __init__(self, events: list[int], candidates: list[int], seed: int) -> None:
        stream = torch.Generator().manual_seed(seed)
        total = sum(events)
        ages = (torch.rand(total, generator=stream, dtype=torch.float64) * 14).exp() * 1e6  # a second to a fortnight
        self.time_B = torch.arange(len(events)) * DAY + 10**15
        self.owner_L = torch.arange(len(events)).repeat_interleave(torch.tensor(events, dtype=torch.int64))
        self.owner_C = torch.arange(len(events)).repeat_interleave(torch.tensor(candidates, dtype=torch.int64))
        self.history = History(
            item_L=torch.randint(ITEMS, (total,), generator=stream),
            surface_L=torch.randint(-1, SURFACES, (total,), generator=stream),
            action_L=torch.randint(ACTIONS, (total,), generator=stream),
            time_L=self.time_B[self.owner_L] - 1 - ages.long(),
            offsets=torch.tensor([0, *events]).cumsum(0),
        )
        self.item_UD = torch.randn(ITEMS, WIDTH, generator=stream, dtype=torch.float64, requires_grad=True)
        self.candidate_CD = torch.randn(
            len(self.owner_C), WIDTH, generator=stream, dtype=torch.float64, requires_grad=True
        )

    def attend(self, module: TargetAttention) -> Tensor:
        return module(self.candidate_CD, self.item_UD, self.history, self.owner_C, self.time_B)


def naive(module: TargetAttention, given_: Case) -> Tensor:
    history, rows = given_.history, []
    for candidate, request in zip(given_.candidate_CD, given_.owner_C.tolist(), strict=True):
        total = torch.zeros(WIDTH, dtype=torch.float64)
        for event in range(int(history.offsets[request]), int(history.offsets[request + 1])):
            token = given_.item_UD[history.item_L[event]]
            token = token + module.action.weight[history.action_L[event]]
            token = token + module.surface.weight[history.surface_L[event] + 1]
            key, value = module.key_value(token)[:WIDTH], module.key_value(token)[WIDTH:]
            hours = int(given_.time_B[request] - history.time_L[event]) / DAY * 24
            bucket = min(int(1.5 * math.log1p(hours)), AGE_BUCKETS - 1)
            score = torch.dot(module.query(candidate), key) / math.sqrt(WIDTH) + module.age_bias[bucket]
            total = total + score / (1 + torch.exp(-score)) / LENGTH * value
        rows.append(total)
    return torch.stack(rows)


SIZES = st.lists(st.tuples(st.integers(0, LENGTH), st.integers(0, 3)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=50)
@given(SIZES.filter(lambda sizes: sum(c for _, c in sizes) > 0), st.integers(0, 99))
def test_equal_to_a_loop(sizes: list[tuple[int, int]], seed: int) -> None:
    module, made = attention(), Case([e for e, _ in sizes], [c for _, c in sizes], seed)
    actual, expected = made.attend(module), naive(module, made)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    leaves = [made.item_UD, made.candidate_CD, *module.parameters()]
    if expected.requires_grad:
        mine, theirs = (
            torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True)
            for out in (actual, expected)
        )
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("events", [[0, 0], [0, 4], [3, 0]])
def test_no_history_gives_zeros(events: list[int]) -> None:
    made = Case(events, [2, 3], 0)
    output = made.attend(attention())
    empty = torch.tensor(events)[made.owner_C] == 0
    assert output.shape == (5, WIDTH)
    assert not output[empty].any()
    assert output[~empty].all()


def test_no_candidates() -> None:
    assert Case([3, 2], [0, 0], 0).attend(attention()).shape == (0, WIDTH)


def test_a_candidate_knows_nothing_of_the_others() -> None:
    module, made = attention(), Case([4, 6], [3, 3], 0)
    before = made.attend(module)
    moved = made.candidate_CD.detach().clone()
    moved[1] += 1.0
    after = module(moved, made.item_UD, made.history, made.owner_C, made.time_B)
    assert after[[0, 2, 3, 4, 5]].equal(before[[0, 2, 3, 4, 5]])
    assert not after[1].equal(before[1])


def test_the_longest_history_of_the_batch_does_not_matter() -> None:
    module, made = attention(), Case([2, LENGTH], [2, 2], 0)
    short = replace(
        made.history,
        **{name: getattr(made.history, name)[:2] for name in ("item_L", "surface_L", "action_L", "time_L")},
        offsets=torch.tensor([0, 2]),
    )
    alone = module(made.candidate_CD[:2], made.item_UD, short, made.owner_C[:2], made.time_B[:1])
    torch.testing.assert_close(alone, made.attend(module)[:2], rtol=1e-12, atol=1e-14)


def test_only_ages_matter_not_the_date() -> None:
    module, made = attention(), Case([4], [2], 0)
    later = replace(made.history, time_L=made.history.time_L + 77 * DAY)
    moved = module(made.candidate_CD, made.item_UD, later, made.owner_C, made.time_B + 77 * DAY)
    assert moved.equal(made.attend(module))
