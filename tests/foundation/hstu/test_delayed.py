"""What is learned from late labels is the truth that the corrections promise, and heads of windows say any window."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foundation.hstu.delayed import DelayedHeads
from foundation.hstu.loss import masked_log_loss
from streaming.errors import ConfigError
from streaming.labels.asked import AskedWindows, ask
from streaming.labels.attribution import DAY
from streaming.labels.delays import DelayCurves
from streaming.labels.plan import BOTH, LabelPlan
from streaming.labels.policy import Correction, FakeNegative, Interpolation, LabelPolicy, Wait
from streaming.schema import TaskConfig

BUY = TaskConfig(name="buy", attribution_seconds=14 * 86_400)
CLICK = TaskConfig(name="click")
NO_GROUPS = np.zeros((1, 0), dtype=np.int64)


def plan_of(policy: LabelPolicy) -> LabelPlan:
    return LabelPlan.of([CLICK, BUY], {"buy": policy})


def whole(plan: LabelPlan, rows: int) -> AskedWindows:
    return ask(plan, group_CG=np.zeros((rows, 0), dtype=np.int64), curves={})


def exponential(mean_days: float) -> DelayCurves:
    """The curve of many conversions with exponential delays, all of them long over."""
    share = (np.arange(20_000) + 0.5) / 20_000
    delay = (-mean_days * np.log1p(-share) * DAY).astype(np.int64)
    zero = np.zeros(len(delay), dtype=np.int64)
    estimate = DelayCurves.Config(bins=14 * 24).estimate
    return estimate(time_N=zero, conversion_N=delay, group_NG=zero[:, None][:, :0], now=20 * DAY, window=14 * DAY)


@pytest.mark.parametrize(("correction", "read"), [("weighted", 0.2), ("calibrated", 0.2), ("none", 0.2 / 1.2)])
def test_fake_negatives_teach_the_rate_that_their_correction_promises(correction: Correction, read: float) -> None:
    heads = DelayedHeads(plan_of(FakeNegative(correction=correction)))
    # Two of ten convert: one at once, one later, which then comes a second time.
    label_CH = torch.tensor([[0.0, BOTH], *[[0.0, 0.0]] * 9, [0.0, 1.0]])
    known_CH = torch.tensor([[False, True]]).expand(11, 2)
    logit_H = torch.zeros(2, requires_grad=True)
    optimiser = torch.optim.SGD([logit_H], lr=2.0)
    for _ in range(300):
        optimiser.zero_grad()
        heads.loss(logit_H.expand(11, 2), label_CH, known_CH).backward()
        optimiser.step()
    logit_CT = heads.read(logit_H.detach().expand(10, 2), whole(heads.plan, 10))
    assert logit_CT[:, 1].sigmoid().tolist() == pytest.approx([read] * 10, rel=1e-3)
    assert logit_CT[:, 0].tolist() == [0.0] * 10  # no example of it was known


def test_the_weights_of_fake_negatives_are_as_published_and_have_no_gradient() -> None:
    heads = DelayedHeads(LabelPlan.of([BUY], {"buy": FakeNegative()}))
    logit = torch.tensor([[-1.0]], requires_grad=True)
    heads.loss(logit, torch.tensor([[BOTH]]), torch.tensor([[True]])).backward()
    p = torch.tensor(-1.0).sigmoid()
    # d/dz of -(1 + p) log f - (1 - p)(1 + p) log(1 - f) with p held fixed
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx((-(1 + p) * (1 - p) + (1 - p) * (1 + p) * p).item())


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_without_fake_negatives_the_loss_is_the_plain_one(rows: list[tuple[float, bool, bool]]) -> None:
    logit_CT = torch.tensor([[value, -value] for value, _, _ in rows])
    label_CT = torch.tensor([[float(label), 1 - float(label)] for _, label, _ in rows])
    known_CT = torch.tensor([[known, not known] for _, _, known in rows])
    heads = DelayedHeads(plan_of(Wait()))
    assert heads.loss(logit_CT, label_CT, known_CT) == masked_log_loss(logit_CT, label_CT, known_CT)
    assert (heads.read(logit_CT, whole(heads.plan, len(rows))) == logit_CT).all()


@given(st.lists(st.floats(-12, 6), min_size=4, max_size=4), st.floats(-9, 9))
def test_the_whole_window_is_what_no_bucket_has_missed(hazards: list[float], click: float) -> None:
    heads = DelayedHeads(plan_of(Interpolation()))
    logit_CH = torch.tensor([[click, *hazards]])
    logit_CT = heads.read(logit_CH, whole(heads.plan, 1))
    survival = np.prod([1 - 1 / (1 + np.exp(-hazard)) for hazard in hazards])
    assert logit_CT[0, 0].item() == pytest.approx(click)
    assert logit_CT[0, 1].sigmoid().item() == pytest.approx(1 - survival, rel=1e-3, abs=1e-6)


def test_longer_windows_are_never_less_likely() -> None:
    curves = {"buy": exponential(4.0)}
    for tail in ("head", "curve"):
        heads = DelayedHeads(plan_of(Interpolation(tail=tail)))
        logit_CH = torch.randn(50, len(heads.plan.heads), generator=torch.Generator().manual_seed(1))
        last = torch.zeros(50)
        for days in (0.2, 1, 1.5, 3, 5, 7, 9, 13.9, 14):
            asked = ask(
                heads.plan, group_CG=np.zeros((50, 0), np.int64), curves=curves, windows={"buy": round(days * DAY)}
            )
            said = heads.read(logit_CH, asked)[:, 1].sigmoid()
            assert (said >= last - 1e-6).all() and (said < 1).all()
            last = said


@pytest.mark.parametrize("tail", ["head", "curve"])
@pytest.mark.parametrize("mean_days", [0.5, 4.0, 20.0])
def test_exact_heads_and_an_exact_curve_say_every_window_exactly(tail: str, mean_days: float) -> None:
    heads = DelayedHeads(plan_of(Interpolation(tail=tail)))

    def truth(days: float) -> float:
        return 0.3 * (1 - np.exp(-days / mean_days))

    hazards = [
        (truth(head.end / DAY) - truth(head.start / DAY)) / (1 - truth(head.start / DAY))
        for head in heads.plan.heads[1:]
    ]
    logit_CH: Tensor = torch.logit(torch.tensor([[0.5, *hazards]], dtype=torch.float64))
    for days in (0.5, 2, 5, 10, 14):
        asked = ask(
            heads.plan, group_CG=NO_GROUPS, curves={"buy": exponential(mean_days)}, windows={"buy": round(days * DAY)}
        )
        assert heads.read(logit_CH, asked)[0, 1].sigmoid().item() == pytest.approx(truth(days), rel=0.005)


def test_a_group_is_read_with_its_own_curve() -> None:
    random = np.random.default_rng(2)
    group_NG = random.integers(0, 2, (20_000, 1))
    delay = random.exponential(np.array([1.0, 8.0])[group_NG[:, 0]]) * DAY
    curves = DelayCurves.Config().estimate(
        time_N=np.zeros(20_000, np.int64),
        conversion_N=delay.astype(np.int64),
        group_NG=group_NG,
        now=20 * DAY,
        window=14 * DAY,
    )
    heads = DelayedHeads(plan_of(Interpolation()))
    asked = ask(heads.plan, group_CG=np.array([[0], [1]]), curves={"buy": curves}, windows={"buy": 2 * DAY})
    fast, slow = heads.read(torch.full((2, 5), -2.0), asked)[:, 1].tolist()
    assert fast > slow


def test_windows_that_cannot_be_read_are_refused() -> None:
    curves = {"buy": exponential(4.0)}
    interpolated = plan_of(Interpolation())
    with pytest.raises(ConfigError, match=r"15 days of task buy; allowed is what lies above 0 and up to .* 14 days"):
        ask(interpolated, group_CG=NO_GROUPS, curves=curves, windows={"buy": 15 * DAY})
    with pytest.raises(ConfigError, match="0 days of task buy"):
        ask(interpolated, group_CG=NO_GROUPS, curves=curves, windows={"buy": 0})
    with pytest.raises(ConfigError, match="there is no task sell; allowed are click, buy"):
        ask(interpolated, group_CG=NO_GROUPS, curves=curves, windows={"sell": DAY})
    with pytest.raises(ConfigError, match="read off a delay curve, and there is none"):
        ask(interpolated, group_CG=NO_GROUPS, curves={}, windows={"buy": 3 * DAY})
    with pytest.raises(ConfigError, match="read off a delay curve, and there is none"):
        ask(plan_of(Interpolation(tail="curve")), group_CG=NO_GROUPS, curves={})
    with pytest.raises(ConfigError, match="'wait' and knows its own window only"):
        ask(plan_of(Wait()), group_CG=NO_GROUPS, curves=curves, windows={"buy": 3 * DAY})
    ask(plan_of(Wait()), group_CG=NO_GROUPS, curves={}, windows={"buy": 14 * DAY})


@pytest.mark.parametrize("policy", [Wait(), FakeNegative(correction="calibrated"), Interpolation()], ids=repr)
def test_probabilities_are_read_as_logits_are(policy: LabelPolicy) -> None:
    heads = DelayedHeads(plan_of(policy))
    logit_CH = torch.linspace(-3, -0.5, 3 * len(heads.plan.heads)).reshape(3, -1)
    p_CH, asked = logit_CH.sigmoid(), whole(heads.plan, 3)
    torch.testing.assert_close(heads.probability(p_CH, asked), heads.read(logit_CH, asked).sigmoid())
    assert isinstance(policy, Wait) == (heads.probability(p_CH, asked) is p_CH)


def test_no_conversion_at_all_is_read_as_one() -> None:
    heads = DelayedHeads(plan_of(FakeNegative(correction="calibrated")))
    logit_CT = heads.read(torch.tensor([[0.0, -40.0], [0.0, 9.0]]), whole(heads.plan, 2))
    assert torch.isfinite(logit_CT).all()
    assert logit_CT[0, 1].item() < -25 and logit_CT[1, 1].item() > 10
