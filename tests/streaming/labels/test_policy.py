"""Every policy trains on what is known and on nothing else (laws L2, L3), and on each candidate as often as it says."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import ConfigError
from streaming.labels.attribution import DAY, NEVER
from streaming.labels.plan import BOTH, LabelPlan
from streaming.labels.policy import FakeNegative, Interpolation, LabelPolicy, Wait
from streaming.requests import Supervision
from streaming.schema import TaskConfig
from tests.streaming.labels.stories import SECOND, TASK, WINDOW, Story, stored, stories

BUCKETS = Interpolation(windows_days=[4 * SECOND / DAY, 10 * SECOND / DAY])
POLICIES: list[LabelPolicy] = [
    Wait(),
    Wait(early_positives=False),
    FakeNegative(),
    BUCKETS,
    BUCKETS.model_copy(update={"tail": "curve"}),
]
policies = pytest.mark.parametrize("policy", POLICIES, ids=repr)


def columns(policy: LabelPolicy, time_C: np.ndarray, conversion_C: np.ndarray) -> Supervision:
    return LabelPlan.of([TASK], {"buy": policy}).columns(stored(time_C, conversion_C), time_C=time_C)


@given(stories())
def test_the_future_changes_no_example(story: Story) -> None:
    for policy in POLICIES:
        before = columns(policy, story.time_C, story.conversion_C)
        after = columns(policy, story.time_C, story.other_C)
        used = before.known(since=0, before=story.now)
        assert (used == after.known(since=0, before=story.now)).all(), policy
        assert (before.label[used] == after.label[used]).all(), policy
        assert (before.known_time[used] == after.known_time[used]).all(), policy
        assert (before.known_time >= story.time_C[:, None]).all(), policy


@given(story=stories())
def test_waiting_gives_one_example_when_the_label_is_known(story: Story) -> None:
    kept = stored(story.time_C, story.conversion_C)
    early, late = (columns(Wait(early_positives=early), story.time_C, story.conversion_C) for early in (True, False))
    assert (early.label == kept.label).all() and (early.known_time == kept.known_time).all()
    assert (late.label == kept.label).all() and (late.known_time[:, 0] == story.time_C + WINDOW).all()


@given(story=stories())
def test_a_fake_negative_comes_with_the_request_and_a_positive_with_the_conversion(story: Story) -> None:
    found = columns(FakeNegative(), story.time_C, story.conversion_C)
    positive = stored(story.time_C, story.conversion_C).label[:, 0] == 1
    assert (found.label[:, 0] == 0).all() and (found.known_time[:, 0] == story.time_C).all()
    assert (found.label[:, 1] == positive).all()
    assert (found.known_time[:, 1] == np.where(positive, story.conversion_C, NEVER)).all()


@given(story=stories())
def test_a_bucket_teaches_who_has_not_converted_before_it(story: Story) -> None:
    found = columns(BUCKETS, story.time_C, story.conversion_C)
    for row, (time, conversion) in enumerate(zip(story.time_C, story.conversion_C, strict=True)):
        start = -1
        for column, end in enumerate([4 * SECOND, 10 * SECOND, WINDOW]):
            delay = None if conversion == NEVER else conversion - time
            at_risk = delay is None or delay > start
            assert found.known_time[row, column] == (time + end if at_risk else NEVER)
            if at_risk:
                assert found.label[row, column] == (delay is not None and delay <= end)
            start = end


@given(stories(), st.lists(st.integers(0, 100), min_size=1, max_size=4))
def test_windows_teach_every_example_once(story: Story, cuts: list[int]) -> None:
    edges = [0, *sorted({cut * SECOND for cut in cuts}), 200 * SECOND]
    for policy in POLICIES:
        plan = LabelPlan.of([TASK], {"buy": policy})
        expected = columns(policy, story.time_C, story.conversion_C)
        positives = ((expected.known_time != NEVER) & (expected.label == 1)).sum()
        negatives = ((expected.known_time != NEVER) & (expected.label == 0)).sum()
        for since, before in pairwise(edges):
            found = plan.taught(
                stored(story.time_C, story.conversion_C), time_C=story.time_C, since=since, before=before
            )
            known = found.known_time != NEVER
            assert (known == found.known(since=since, before=before)).all()
            assert found.label.shape == (len(story.time_C), len(plan.heads))
            assert (known == known & ((found.label == 0) | (found.label == 1) | (found.label == BOTH))).all()
            positives -= (known & (found.label > 0)).sum()
            negatives -= (known & (found.label < 1)).sum()
        assert positives == negatives == 0, policy


@given(stories(), st.integers(0, 60))
def test_the_future_changes_nothing_that_a_window_teaches(story: Story, start: int) -> None:
    for policy in POLICIES:
        plan = LabelPlan.of([TASK], {"buy": policy})
        first, second = (
            plan.taught(
                stored(story.time_C, each), time_C=story.time_C, since=min(start * SECOND, story.now), before=story.now
            )
            for each in (story.conversion_C, story.other_C)
        )
        assert (first.known_time == second.known_time).all(), policy
        known = first.known_time != NEVER
        assert (first.label[known] == second.label[known]).all(), policy


def test_a_conversion_in_the_window_of_its_request_is_both() -> None:
    plan = LabelPlan.of([TASK], {"buy": FakeNegative()})
    time_C, conversion_C = np.array([0, 0, 8, 8]) * SECOND, np.array([3, 12, 9, NEVER // SECOND]) * SECOND
    conversion_C[3] = NEVER
    kept = stored(time_C, conversion_C)
    first, second = (
        plan.taught(kept, time_C=time_C, since=since * SECOND, before=(since + 10) * SECOND) for since in (0, 10)
    )
    assert first.label[:, 0].tolist() == [BOTH, 0, BOTH, 0]
    assert first.known_time[:, 0].tolist() == [3 * SECOND, 0, 9 * SECOND, 8 * SECOND]
    assert second.label[1, 0] == 1
    assert second.known_time[:, 0].tolist() == [NEVER, 12 * SECOND, NEVER, NEVER]


def test_without_a_last_head_nothing_waits_for_the_attribution_window() -> None:
    plan = LabelPlan.of([TASK], {"buy": POLICIES[-1]})
    time_C = np.array([7 * SECOND])
    known_CK = plan.columns(stored(time_C, np.array([NEVER])), time_C=time_C).known_time
    assert known_CK.tolist() == [[11 * SECOND, 17 * SECOND]]


@policies
@given(story=stories())
def test_an_open_label_may_be_null(policy: LabelPolicy, story: Story) -> None:
    whole, plan = stored(story.time_C, story.conversion_C), LabelPlan.of([TASK], {"buy": policy})
    null = replace(whole, known_time=np.where(whole.label == 1, whole.known_time, NEVER))
    expected, found = (plan.columns(each, time_C=story.time_C) for each in (whole, null))
    assert (found.label == expected.label).all() and (found.known_time == expected.known_time).all()


@pytest.mark.parametrize("task", [TaskConfig(name="buy"), TASK.model_copy(update={"given": "click"})])
def test_no_label_is_no_example_of_a_task_without_a_window_or_given_another(task: TaskConfig) -> None:
    column = np.zeros((2, 1), dtype=np.float32)
    never = Supervision(
        label=column, known_time=np.full((2, 1), NEVER), weight=column[:, 0], stratum=np.zeros(2, dtype=np.int8)
    )
    found = LabelPlan.of([task]).columns(never, time_C=np.array([1, 2]))
    assert (found.known_time == NEVER).all()


def test_tasks_stand_side_by_side_and_those_not_named_wait() -> None:
    tasks = [TaskConfig(name="click"), TASK.model_copy(update={"name": "sign_up"}), TASK]
    plan = LabelPlan.of(tasks, {"sign_up": FakeNegative(), "buy": BUCKETS})
    assert [head.task for head in plan.heads] == ["click", "sign_up", "buy", "buy", "buy"]
    assert len(set(plan.head_names)) == 5
    time_C = np.array([3 * SECOND])
    one = stored(time_C, np.array([5 * SECOND]))
    label, known = (np.concatenate([part] * 3, axis=1) for part in (one.label, one.known_time))
    found = plan.columns(
        Supervision(label=label, known_time=known, weight=one.weight, stratum=one.stratum), time_C=time_C
    )
    assert found.label.tolist() == [[1, 0, 1, 1, 0, 0]]
    assert found.known_time.tolist() == [[5 * SECOND, 3 * SECOND, 5 * SECOND, 7 * SECOND, NEVER, NEVER]]


@pytest.mark.parametrize("policy", [FakeNegative(), Interpolation()])
def test_only_a_task_with_a_window_can_be_imputed(policy: LabelPolicy) -> None:
    with pytest.raises(ConfigError, match="task click declares no attribution window"):
        LabelPlan.of([TaskConfig(name="click")], {"click": policy})


@pytest.mark.parametrize("policy", [FakeNegative(), BUCKETS])
def test_a_task_that_depends_on_another_ones_outcome_cannot_be_imputed(policy: LabelPolicy) -> None:
    tasks = [TASK, TASK.model_copy(update={"name": "twice", "given": "buy"})]
    with pytest.raises(ConfigError, match="whether twice has one at all is known only with buy"):
        LabelPlan.of(tasks, {"twice": policy})


def test_what_is_wrong_with_a_plan_is_said() -> None:
    with pytest.raises(ConfigError, match="there is no task sell; allowed are buy"):
        LabelPlan.of([TASK], {"sell": Wait()})
    with pytest.raises(ConfigError, match="7 days are not shorter than the task's attribution window"):
        LabelPlan.of([TASK], {"buy": Interpolation()})
    clash = TaskConfig(name="buy@1d", attribution_seconds=4 * 86_400)
    with pytest.raises(ConfigError, match=r"two heads are called buy@1d\."):
        LabelPlan.of([clash.model_copy(update={"name": "buy"}), clash], {"buy": Interpolation(windows_days=[1])})
    for days in ([], [0.0, 1.0], [3.0, 1.0], [1.0, 1.0]):
        with pytest.raises(ValueError, match="windows_days"):
            Interpolation(windows_days=days)
