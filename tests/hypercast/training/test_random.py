"""What one consumer draws never shifts what another gets."""

import math

import pytest
import torch
from torch import nn

from hypercast.training.random import NamedDropout, generator, get_states, initialise_, set_states, stream_seed


def draw(*names: str | int, seed: int = 0) -> list[float]:
    return torch.rand(4, generator=generator(seed, *names)).tolist()


def test_streams_are_repeatable_and_apart() -> None:
    assert draw("shuffle", 3) == draw("shuffle", 3)
    different = [
        draw("shuffle", 3),
        draw("shuffle", 4),
        draw("shuffle"),
        draw("shuffle", 3, seed=1),
        draw("shuffle", "3"),
        draw("shuffle3"),
        draw("s", "huffle"),
    ]
    assert len({tuple(values) for values in different}) == len(different)


def test_seeds_are_the_same_on_every_machine() -> None:
    assert stream_seed(0, "shuffle", 12) == 5024355095287718685


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    module = nn.Sequential(nn.Linear(3, 3), NamedDropout(0.5, seed=0, name="d"))
    torch.set_rng_state(before)
    initialise_(module, 0)
    module(torch.ones(2, 3))
    assert torch.equal(torch.get_rng_state(), before)


class Small(nn.Module):
    def __init__(self, *, extra: bool) -> None:
        super().__init__()
        if extra:
            self.adapter = nn.Linear(7, 7)
        self.table = nn.Parameter(torch.empty(1000, 8))
        self.table.init_std = 0.02  # type: ignore[attr-defined]
        self.first = nn.Linear(8, 4)
        self.norm = nn.LayerNorm(4)
        if extra:
            self.gate = nn.Linear(4, 4)
        self.last = nn.Linear(4, 1, bias=False)


def test_an_extra_module_does_not_shift_the_others() -> None:
    plain, extended = Small(extra=False), Small(extra=True)
    initialise_(plain, 3)
    initialise_(extended, 3)
    values = dict(extended.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, values[name]), name
    other = Small(extra=False)
    initialise_(other, 4)
    assert not torch.equal(other.first.weight, plain.first.weight)
    twins = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    initialise_(twins, 3)
    assert not torch.equal(*(parameter for parameter in twins.parameters() if parameter.dim() == 2))


def test_initial_values_have_their_distributions() -> None:
    module = Small(extra=False)
    initialise_(module, 0)
    assert module.table.mean().abs() < 0.001
    assert abs(module.table.std().item() - 0.02) < 0.001
    assert torch.equal(module.norm.weight, torch.ones(4))
    assert torch.equal(module.norm.bias, torch.zeros(4))
    assert torch.equal(module.first.bias, torch.zeros(4))
    wide = nn.Linear(300, 100).double()
    initialise_(wide, 0)
    bound = math.sqrt(6 / 400)
    assert wide.weight.abs().max() <= bound
    assert abs(wide.weight.std().item() - bound / math.sqrt(3)) < 0.002


def test_dropout_masks_depend_on_seed_name_and_count_only() -> None:
    x = torch.ones(50, 40)
    first, second = NamedDropout(0.25, seed=1, name="a"), NamedDropout(0.25, seed=1, name="a")
    other = NamedDropout(0.25, seed=1, name="b")
    torch.rand(3)
    masks = [first(x) for _ in range(3)]
    other(x)
    assert all(torch.equal(mask, second(x)) for mask in masks)
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], NamedDropout(0.25, seed=1, name="b")(x))
    torch.testing.assert_close(masks[0].unique(), torch.tensor([0.0, 4 / 3]))
    assert abs((masks[0] == 0).float().mean().item() - 0.25) < 0.03


def test_dropout_is_the_identity_in_evaluation_and_draws_nothing() -> None:
    dropout = NamedDropout(0.5, seed=0, name="a").eval()
    x = torch.randn(5, 5)
    assert dropout(x) is x
    assert dropout.get_state() == 0
    assert NamedDropout(0.0, seed=0, name="a")(x) is x


def test_dropout_passes_gradients_through_what_it_keeps() -> None:
    x = torch.ones(100, requires_grad=True)
    y = NamedDropout(0.5, seed=0, name="a")(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_dropout_goes_on_from_its_state() -> None:
    x = torch.ones(30)
    module = nn.Sequential(NamedDropout(0.5, seed=0, name="a"), nn.Identity(), NamedDropout(0.5, seed=0, name="b"))
    module(module(x))
    states = get_states(module)
    assert sorted(states) == ["0", "2"]
    expected = module(x)
    fresh = nn.Sequential(NamedDropout(0.5, seed=0, name="a"), nn.Identity(), NamedDropout(0.5, seed=0, name="b"))
    set_states(fresh, states)
    assert torch.equal(fresh(x), expected)
    with pytest.raises(KeyError):
        set_states(fresh, {"0": states["0"]})


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_impossible_probabilities_are_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        NamedDropout(p, seed=0, name="a")
