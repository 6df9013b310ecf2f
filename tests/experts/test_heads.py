"""One logit a task, each from its own tower where there is one; unknown labels teach nothing."""

import pydantic
import pytest
import torch

from experts.heads import TaskHeads
from foundation.hstu.loss import masked_log_loss
from hypercast.training.random import initialise_

WIDTH, TASKS = 6, 3


def heads(tower: list[int]) -> TaskHeads:
    made = TaskHeads.Config(tower=tower).build(width=WIDTH, tasks=TASKS)
    initialise_(made, 0)
    return made


def hidden() -> torch.Tensor:
    return torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(0))


def test_without_a_tower_one_linear_map() -> None:
    module = heads([])
    torch.testing.assert_close(module(hidden()), hidden() @ module.weight.T + module.bias)


def test_each_task_reads_its_own_tower() -> None:
    module = heads([5, 4])
    expected = [module.towers[t](hidden()) @ module.weight[t] + module.bias[t] for t in range(TASKS)]
    torch.testing.assert_close(module(hidden()), torch.stack(expected, dim=1))


@pytest.mark.parametrize("tower", [[], [8]])
def test_logits_start_near_zero(tower: list[int]) -> None:
    assert heads(tower)(hidden()).abs().max() < 0.1


@pytest.mark.parametrize("tower", [[], [8]])
def test_an_unknown_task_teaches_its_head_nothing(tower: list[int]) -> None:
    module, known = heads(tower), torch.ones(7, TASKS, dtype=torch.bool)
    known[:, 1] = False
    masked_log_loss(module(hidden()), torch.ones(7, TASKS), known).backward()
    assert not module.weight.grad[1].any()
    assert module.weight.grad[[0, 2]].any(dim=1).all()
    if module.towers is not None:
        assert not any(each.grad.any() for each in module.towers[1].parameters())
        assert all(each.grad.any() for each in module.towers[0].parameters())


def test_refuses_a_layer_without_units() -> None:
    with pytest.raises(pydantic.ValidationError):
        TaskHeads.Config(tower=[8, 0])
