"""Stochastic length keeps short histories, and of long ones a part, as often and as chosen by the formula."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.hstu.jagged import offsets_of
from foundation.hstu.stochastic_length import (
    Choice,
    StochasticLength,
    kept_tokens,
    probability_whole,
    recency_weights,
    subsampled_length,
)
from hypercast.training.random import get_states, set_states
from streaming.batch import History
from streaming.config import parse
from streaming.errors import ConfigError

CHOICES: list[Choice] = ["recency", "uniform"]
BASE = 16


def kept(lengths: list[int], timestamps: Tensor, *, alpha: float, choice: Choice, seed: int = 0) -> Tensor:
    return kept_tokens(
        offsets_of(torch.tensor(lengths, dtype=torch.int64)),
        timestamps,
        base_length=BASE,
        alpha=alpha,
        choice=choice,
        stream=torch.Generator().manual_seed(seed),
    )


def history(lengths: list[int]) -> History:
    tokens = sum(lengths)
    return History(
        item_L=torch.arange(tokens),
        surface_L=torch.arange(tokens) + 1000,
        action_L=torch.arange(tokens) + 2000,
        time_L=torch.arange(tokens) ** 2 + 3000,
        offsets=offsets_of(torch.tensor(lengths, dtype=torch.int64)),
    )


def module(*, alpha: float = 1.3, choice: Choice = "recency", seed: int = 0) -> StochasticLength:
    made = StochasticLength.Config(alpha=alpha, choice=choice).build(base_length=BASE, seed=seed, name="history")
    assert made is not None
    return made


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, BASE), max_size=6),
    st.floats(1.0, 2.0, exclude_min=True),
    st.sampled_from(CHOICES),
    st.integers(0, 99),
    st.booleans(),
)
def test_what_is_kept(lengths: list[int], alpha: float, choice: Choice, seed: int, same_time: bool) -> None:
    times = torch.zeros(sum(lengths), dtype=torch.int64) if same_time else torch.arange(sum(lengths)) ** 3
    index = kept(lengths, times, alpha=alpha, choice=choice, seed=seed)
    assert index.dtype == torch.int64
    assert (index.diff() > 0).all()  # in order, none twice
    target = subsampled_length(base_length=BASE, alpha=alpha)
    start = 0
    for length in lengths:
        count = int(((index >= start) & (index < start + length)).sum())
        assert count in (length, min(length, target))
        if length <= BASE ** (alpha / 2):
            assert count == length
        start += length
    assert index.numel() == 0 or (index[0] >= 0 and index[-1] < start)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("length", "alpha"), [(16, 1.2), (16, 1.7), (9, 1.5), (16, 1.99)])
def test_how_often_a_history_is_kept_whole(length: int, alpha: float, choice: Choice) -> None:
    count = 4000
    index = kept([length] * count, torch.arange(length).repeat(count), alpha=alpha, choice=choice)
    sizes = torch.bincount(index // length, minlength=count)
    probability = BASE**alpha / length**2
    assert 0 < probability < 1 and probability_whole(length, base_length=BASE, alpha=alpha) == probability
    deviation = math.sqrt(probability * (1 - probability) / count)
    assert abs((sizes == length).double().mean() - probability) < 4 * deviation
    assert set(sizes.tolist()) == {length, int(BASE ** (alpha / 2))}


def test_lengths_and_probabilities() -> None:
    assert subsampled_length(base_length=8192, alpha=1.7) == 2120
    assert subsampled_length(base_length=16, alpha=1.5) == 8
    assert subsampled_length(base_length=100, alpha=2.0) == 100
    assert [probability_whole(n, base_length=16, alpha=1.5) for n in (0, 1, 8, 16)] == [1.0, 1.0, 1.0, 0.25]
    assert probability_whole(100, base_length=100, alpha=2.0) == 1.0


def sequential_draws(weights: list[float], count: int) -> dict[tuple[int, ...], float]:
    """The probability of every set that draws without replacement can give, by the definition."""
    found: dict[tuple[int, ...], float] = {}
    for drawn in itertools.permutations(range(len(weights)), count):
        probability, left = 1.0, sum(weights)
        for token in drawn:
            probability *= weights[token] / left if left else 0.0
            left -= weights[token]
        together = tuple(sorted(drawn))
        found[together] = found.get(together, 0.0) + probability
    return found


@pytest.mark.parametrize("choice", CHOICES)
def test_which_tokens_are_drawn(choice: Choice) -> None:
    """4 of 5 tokens: each possible set as often as drawing one after the other, without replacement, gives it."""
    count, alpha, times = 6000, 1.1, [0, 50, 80, 90, 100]
    index = kept([5] * count, torch.tensor(times).repeat(count), alpha=alpha, choice=choice)
    by_history = [part % 5 for part in index.split(torch.bincount(index // 5, minlength=count).tolist())]
    sets = Counter(tuple(part.tolist()) for part in by_history if len(part) < 5)
    elapsed = [100 - time for time in times]
    weights = [1 - each / sum(elapsed) for each in elapsed] if choice == "recency" else [1.0] * 5
    expected = sequential_draws(weights, subsampled_length(base_length=BASE, alpha=alpha))
    total = sets.total()
    for drawn, probability in expected.items():
        deviation = math.sqrt(probability * (1 - probability) / total)
        assert abs(sets[drawn] / total - probability) < 4 * deviation, drawn
    if choice == "recency":
        assert sets[(0, 1, 2, 3)] < sets[(1, 2, 3, 4)]


def test_weights_by_recency() -> None:
    offsets = torch.tensor([0, 3, 3, 4, 6])
    times = torch.tensor([10, 40, 50, 7, 5, 5])
    expected = torch.tensor([1 - 40 / 50, 1 - 10 / 50, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(recency_weights(offsets, times), expected)


def test_all_of_a_token_stays_together() -> None:
    given_history = history([16, 3, 0, 16, 12])
    short = module(alpha=1.1).train()(given_history)
    assert 0 < len(short.item_L) < len(given_history.item_L)
    for name, shift in (("item_L", 0), ("surface_L", 1000), ("action_L", 2000)):
        assert (getattr(short, name) - shift).equal(short.item_L)
    assert short.time_L.equal(given_history.time_L[short.item_L])
    owner = torch.bucketize(short.item_L, given_history.offsets, right=True) - 1
    assert short.offsets.equal(offsets_of(torch.bincount(owner, minlength=5)))


def test_evaluation_keeps_everything_and_draws_nothing() -> None:
    made, given_history = module().eval(), history([16, 16])
    assert made(given_history) is given_history
    assert made.get_state() == 0
    made.train()(given_history)
    assert made.get_state() == 1


def test_the_same_seed_gives_the_same_tokens_and_another_draw_others() -> None:
    given_history = history([16] * 20)

    def draws(seed: int) -> list[list[int]]:
        made = module(seed=seed).train()
        return [made(given_history).item_L.tolist() for _ in range(3)]

    first, second, other = draws(1), draws(1), draws(2)
    assert first == second
    assert first[0] != first[1] != first[2]
    assert all(mine != theirs for mine, theirs in zip(first, other, strict=True))


def test_it_resumes_with_the_other_streams_of_a_run() -> None:
    given_history = history([16] * 20)
    holder, fresh = (torch.nn.Sequential(module()).train() for _ in range(2))
    holder(given_history)
    states = get_states(holder)
    expected = holder(given_history).item_L
    assert not fresh(given_history).item_L.equal(expected)
    set_states(fresh, states)
    assert fresh(given_history).item_L.equal(expected)


def test_off_is_no_module() -> None:
    assert StochasticLength.Config().build(base_length=BASE, seed=0, name="history") is None


@pytest.mark.parametrize("alpha", [1.0, 2.01, 0.0, -1.7, float("nan")])
def test_alpha_outside_its_range(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"key 'alpha'.*allowed are 1 < alpha <= 2, or null for off\. Example: 1\.7"):
        parse({"alpha": alpha}, StochasticLength.Config, source="model.yaml")
