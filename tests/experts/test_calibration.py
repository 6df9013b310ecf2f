"""Calibration repairs a head that is off, from past windows alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from experts.calibration import LEAST_SLOPE, PlattCalibration
from hypercast.training import checkpoint
from transfer.metric.calibration import calibration as ratio
from transfer.metric.normalised_entropy import normalised_entropy

Said = tuple[Tensor, Tensor, Tensor]


def built(**options: float) -> PlattCalibration:
    return PlattCalibration.Config(**{"prior": 1.0, **options}).build(tasks=2).eval()


def window(seed: int, *, slope: float, shift: float, rows: int = 4000) -> Said:
    """Labels drawn by true logits, of which the head says ``(true - shift) / slope``; a fifth is not known."""
    stream = torch.Generator().manual_seed(seed)
    true_CT = torch.randn(rows, 2, generator=stream) - 1.5
    label_CT = (torch.rand(rows, 2, generator=stream) < true_CT.sigmoid()).float()
    known_CT = torch.rand(rows, 2, generator=stream) < 0.8
    return (true_CT - shift) / slope, label_CT * known_CT, known_CT


def metrics(logit_CT: Tensor, label_CT: Tensor, known_CT: Tensor) -> tuple[float, float]:
    rows = known_CT[:, 0].numpy()
    said, label = logit_CT[:, 0].sigmoid().numpy()[rows], label_CT[:, 0].numpy()[rows]
    return ratio(said, label), normalised_entropy(said, label)


@pytest.mark.parametrize(("slope", "shift"), [(1.0, -1.5), (0.5, 0.0), (2.0, 0.7)])
def test_repairs_a_miscalibrated_head(slope: float, shift: float) -> None:
    module = built()
    module.observe(*window(1, slope=slope, shift=shift))
    module.close()
    np.testing.assert_allclose(module.slope, slope, rtol=0.15)
    np.testing.assert_allclose(module.intercept, shift, atol=0.15)
    raw, label, known = window(2, slope=slope, shift=shift)
    off, loss = metrics(raw, label, known)
    calibrated, lower = metrics(module(raw), label, known)
    assert abs(np.log(calibrated)) < 0.1 < abs(np.log(off))
    assert lower < loss


def test_leaves_a_calibrated_head_alone() -> None:
    module = built()
    module.observe(*window(1, slope=1.0, shift=0.0))
    module.close()
    np.testing.assert_allclose(module.slope, 1.0, atol=0.1)
    np.testing.assert_allclose(module.intercept, 0.0, atol=0.1)


def test_bins_cost_next_to_nothing() -> None:
    """As fitted on the rows themselves, by another optimiser."""
    module = built(prior=1e-6)
    logit, label, known = window(3, slope=0.7, shift=0.4)
    module.observe(logit, label, known)
    module.close()
    for task in range(2):
        x, y = logit[known[:, task], task].double(), label[known[:, task], task].double()
        at = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([at], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

        def loss(x: Tensor = x, y: Tensor = y, at: Tensor = at, step: torch.optim.Optimizer = optimiser) -> Tensor:
            step.zero_grad()
            value = torch.nn.functional.binary_cross_entropy_with_logits(at[0] * x + at[1], y)
            value.backward()
            return value

        optimiser.step(loss)
        fitted = [float(module.slope[task]), float(module.intercept[task])]
        np.testing.assert_allclose(fitted, at.detach().numpy(), atol=2e-3)


def test_nothing_of_a_window_reaches_its_own_predictions() -> None:
    """Law L4: whatever the open window's labels are, its predictions are those of the windows before."""
    module = built()
    module.observe(*window(1, slope=0.5, shift=1.0))
    module.close()
    raw, label, known = window(2, slope=2.0, shift=-1.0)
    before = module(raw)
    module.observe(raw, label, known)
    assert module(raw).equal(before)
    other = built()
    other.observe(*window(1, slope=0.5, shift=1.0))
    other.close()
    other.observe(raw, 1 - label, known)
    assert other(raw).equal(before)
    module.close()
    other.close()
    assert not module(raw).allclose(before)
    assert not module(raw).allclose(other(raw))


def test_unknown_labels_count_for_nothing() -> None:
    logit, label, known = window(1, slope=0.5, shift=1.0)
    one, other = built(), built()
    one.observe(logit, label, known)
    other.observe(torch.where(known, logit, 9.0), torch.where(known, label, 1.0), known)
    assert one.pending.equal(other.pending)


def test_training_sees_plain_logits() -> None:
    module = built()
    module.observe(*window(1, slope=0.5, shift=1.0))
    module.close()
    logit = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert module.train()(logit) is logit
    assert not module.eval()(logit).allclose(logit)


def test_a_ranking_is_never_turned_around() -> None:
    logit, label, known = window(1, slope=-1.0, shift=0.0)
    module = built()
    module.observe(logit, label, known)
    module.close()
    assert module.slope.tolist() == [LEAST_SLOPE] * 2
    calibrated, _ = metrics(module(logit), label, known)
    assert abs(np.log(calibrated)) < 0.1


def test_what_does_harm_is_left_off_until_it_would_help() -> None:
    """A base rate that swings from window to window, and then stays where it has gone."""
    module, off = built(half_life=0.5), []
    for number, shift in enumerate([1.0, -1.0, 1.0, -1.0, -1.0, -1.0, -1.0]):
        said = window(number, slope=1.0, shift=shift)
        off.append(bool(module(said[0]).equal(said[0])))
        module.observe(*said)
        module.close()
    assert off[:4] == [True, False, True, True]  # nothing to apply yet; applied; harmful twice
    assert not off[-1]


def test_each_task_is_left_off_by_itself() -> None:
    module = built()
    for number in range(2):
        logit, label, known = window(number, slope=1.0, shift=1.0)
        module.observe(logit + torch.tensor([0.0, 2.0 * number]), label, known)
        module.close()
    logit = window(9, slope=1.0, shift=1.0)[0]
    assert not module(logit)[:, 0].equal(logit[:, 0])
    assert module(logit)[:, 1].equal(logit[:, 1])


def test_old_windows_fade() -> None:
    module = built(half_life=1.0)
    module.observe(*window(1, slope=1.0, shift=2.0))
    module.close()
    first = float(module.intercept[0])
    for seed in range(2, 8):
        module.observe(*window(seed, slope=1.0, shift=0.0))
        module.close()
    assert abs(float(module.intercept[0])) < 0.15 < first


@settings(deadline=None, max_examples=40)
@given(
    logits=st.lists(st.floats(-1e4, 1e4), max_size=6),
    labels=st.lists(st.booleans(), min_size=6, max_size=6),
    prior=st.floats(1e-3, 1e3),
)
def test_little_data_changes_little_and_never_breaks(logits: list[float], labels: list[bool], prior: float) -> None:
    """One class, one row, none, or logits without bound: finite, and closer to the identity the stronger the prior."""
    module, stronger = built(prior=prior), built(prior=1e7)
    logit = torch.tensor(logits)[:, None].expand(-1, 2)
    label = torch.tensor(labels[: len(logits)]).float()[:, None].expand(-1, 2)
    for each in (module, stronger):
        each.observe(logit, label, torch.ones(logit.shape, dtype=torch.bool))
        each.close()
    assert torch.isfinite(module.slope).all() and torch.isfinite(module.intercept).all()
    assert (module.slope >= LEAST_SLOPE).all()
    np.testing.assert_allclose(stronger.slope, 1.0, atol=1e-3)
    np.testing.assert_allclose(stronger.intercept, 0.0, atol=1e-3)


def test_the_state_is_all_there_is() -> None:
    one, other = built(), built()
    one.observe(*window(1, slope=0.5, shift=1.0))
    one.close()
    one.observe(*window(2, slope=0.5, shift=1.0))
    other.load_state_dict(one.state_dict())
    for each in (one, other):
        each.observe(*window(3, slope=0.5, shift=1.0))
        each.close()
    assert one.slope.equal(other.slope) and one.past.equal(other.past)
    names = {"slope", "intercept", "past", "pending", "saved", "pending_saved"}
    assert set(checkpoint.pack(one.state_dict())[0]) == names


def test_refuses_shapes_that_differ() -> None:
    logit, label, known = window(1, slope=1.0, shift=0.0, rows=5)
    with pytest.raises(ValueError, match=r"one shape \[C, 2\]"):
        built().observe(logit, label[:3], known)
    with pytest.raises(ValueError, match=r"one shape \[C, 2\]"):
        built().observe(logit[:, :1], label[:, :1], known[:, :1])
