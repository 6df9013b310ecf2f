"""A step's lesson: some of the window's own requests, and an equal share of every window that comes again."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experts.lessons import Lessons, Taught
from experts.steps import SurfaceLearner
from hypercast.store.tae_log import TaeLog
from hypercast.training.replay import Replay
from streaming.dataset import Window
from streaming.importers.synthetic import Synthetic
from streaming.labels.rate_columns import LabelRateColumns
from streaming.requests import Requests
from streaming.workspace import Workspace

MakeLearner = Callable[..., SurfaceLearner]
Make = Callable[..., Lessons]
SIZE = 8
Known = tuple[int, int, int, int]
"""A label: request, candidate, task, and when it became known."""


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Labels become known three days after the request: some of a window in the one after."""
    path = tmp_path_factory.mktemp("late") / "data"
    config = Synthetic.Config(users=30, items=24, candidates=4, windows=5, label_delay_seconds=3 * 86400.0)
    return Workspace(config.build(path))


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> TaeLog:
    return TaeLog.Config().build(tmp_path_factory.mktemp("nothing") / "log")


@pytest.fixture
def lessons(learner: MakeLearner, late: Workspace, nothing: TaeLog) -> Make:
    """Of ``surface_1``, ``SIZE`` requests a step, after the windows that ``trained`` names."""

    def make(
        trained: list[int] | None = None, *, windows: int = 0, on: Workspace | None = None, size: int = SIZE
    ) -> Lessons:
        asked: dict[str, Any] = {} if on is None else {"on": on}
        asked |= {"log": nothing} if on is late else {}  # which was published for other data
        made = learner(arms=["control"], seeds=[0], replay=Replay.Config(windows=windows), batch_size=size, **asked)
        for window in trained or []:
            made.replay.finish(window)
        return made.lessons

    return make


def of_window(made: Lessons, window: Window) -> list[Requests]:
    """What the window teaches of the surface, a part for every window that the requests were made in."""
    return [learned.on_surface(*made.surfaces) for _, learned in made.workspace.became_known_in(window)]


def labels(parts: list[Requests]) -> list[Known]:
    found: list[Known] = []
    for part in parts:
        time_CT, owner = part.supervision.known_time, part.request_id[part.owner]
        found += [
            (int(owner[c]), int(part.candidate_id[c]), int(t), int(time_CT[c, t]))
            for c, t in np.argwhere(time_CT != part.supervision.NEVER)
        ]
    return sorted(found)


def ids(part: Taught | Requests) -> list[int]:
    return (part.requests if isinstance(part, Taught) else part).request_id.tolist()


def test_without_replay_a_windows_requests_come_in_order_in_slices(lessons: Make, workspace: Workspace) -> None:
    made, window = lessons([1, 2]), workspace.dataset.window(3)
    (own,) = of_window(made, window)
    assert len(own) % SIZE and len(own) > 2 * SIZE
    assert [ids(part) for part in made.of(window)] == [ids(own)[at : at + SIZE] for at in range(0, len(own), SIZE)]


def test_without_replay_late_labels_are_spread_over_the_window(lessons: Make, late: Workspace) -> None:
    made, window = lessons([1, 2], on=late), late.dataset.window(3)
    earlier, own = of_window(made, window)
    slices = [[ids(part)[at : at + SIZE] for at in range(0, len(part), SIZE)] for part in (earlier, own)]
    given = [ids(part) for part in made.of(window)]
    assert sorted(given) == sorted([*slices[0], *slices[1]])
    for each in slices:
        assert [part for part in given if part in each] == each
    assert given not in (slices[0] + slices[1], slices[1] + slices[0])


@pytest.mark.parametrize("delayed", [False, True])
def test_every_step_has_its_own_requests_and_an_equal_share_of_each_replayed_window(
    lessons: Make, workspace: Workspace, late: Workspace, delayed: bool
) -> None:
    on = late if delayed else workspace
    plain, made = lessons([1, 2, 3], on=on), lessons([1, 2, 3], on=on, windows=2)
    window = on.dataset.window(4)
    alone, given = [ids(part) for part in plain.of(window)], [ids(part) for part in made.of(window)]
    assert len(given) == len(alone) > 2
    again = [part[: len(part) - len(own)] for part, own in zip(given, alone, strict=True)]
    assert all(part[len(rest) :] == own for part, rest, own in zip(given, again, alone, strict=True))
    drawn = made.replay.draw(4)
    assert len(drawn) == 2
    replayed = [part for index in drawn for part in of_window(made, on.dataset.window(index))]
    cuts = [[0] for _ in again]
    for part in replayed:
        bounds = [len(part) * step // len(again) for step in range(len(again) + 1)]
        for step, (start, stop) in enumerate(pairwise(bounds)):
            assert abs(stop - start - len(part) / len(again)) < 1
            before = cuts[step][-1]
            cuts[step].append(before + stop - start)
            assert again[step][before : cuts[step][-1]] == ids(part)[start:stop]
    assert [cut[-1] for cut in cuts] == [len(rest) for rest in again]
    every = Counter(request for rest in again for request in rest)
    assert every == Counter(request for part in replayed for request in ids(part))


@pytest.mark.parametrize("delayed", [False, True])
def test_labels_are_known_as_they_became_so_in_the_window_that_taught_them(
    learner: MakeLearner, workspace: Workspace, late: Workspace, nothing: TaeLog, log: TaeLog, delayed: bool
) -> None:
    """Law L2: nothing of a replayed request but what was learned of it then, and no label twice."""
    on, logged = (late, nothing) if delayed else (workspace, log)
    asked = {"batch_size": SIZE, "replay": Replay.Config(windows=2)}
    made = learner(arms=["control"], seeds=[0], on=on, log=logged, **asked)
    for index in (1, 2, 3):
        made.replay.finish(index)
    window = on.dataset.window(4)
    taught = [4, *made.replay.draw(4)]
    expected = [known for index in taught for known in labels(of_window(made.lessons, on.dataset.window(index)))]
    parts = list(made.lessons.of(window))
    assert labels([part.requests for part in parts]) == sorted(expected)
    assert len(set(expected)) == len(expected) > 0 and max(known[3] for known in expected) < window.end
    batches = list(made.batches(window))
    marked = [torch.from_numpy(part.requests.supervision.known_time < window.end) for part in parts]
    for batch, known_CT, part in zip(batches, marked, parts, strict=True):
        assert batch.lesson.known_CT.equal(known_CT)
        assert batch.lesson.weight_C.tolist() == part.requests.supervision.weight.tolist()
        assert batch.requests.time_B.tolist() == part.requests.time.tolist()
    for index in (1, 2, 3, 4):
        span = on.dataset.window(index)
        seen = [known for known in labels([part.requests for part in parts]) if span.start <= known[3] < span.end]
        assert bool(seen) == (index in taught)


def test_what_was_logged_and_counted_then_comes_again(lessons: Make, workspace: Workspace, log: TaeLog) -> None:
    """Embeddings by the snapshot that published the window, and label rates as of its beginning (laws L3, L5)."""
    on = workspace.with_label_rates(LabelRateColumns.Config())
    made = lessons([1, 2], windows=2, on=workspace)
    made.workspace = on
    logit: dict[tuple[int, int], float] = {}
    dense: dict[tuple[int, int], list[float]] = {}
    for index, snapshot in ((1, "FM@0001"), (2, "FM@0002"), (3, "FM@0003")):
        table = log.segment(snapshot, index).table.to_pandas()
        logit |= table.set_index(["request_id", "candidate_id"])["teacher_logit_purchase"].to_dict()
        whole = on.requests(index)
        rows = zip(whole.request_id[whole.owner].tolist(), whole.candidate_id.tolist(), strict=True)
        dense |= dict(zip(rows, whole.dense.tolist(), strict=True))
    parts = list(made.of(workspace.dataset.window(3)))
    for part in parts:
        owner = part.requests.request_id[part.requests.owner].tolist()
        keys = list(zip(owner, part.requests.candidate_id.tolist(), strict=True))
        expected = [logit[key] for key in keys]
        assert part.features.logit_CT[:, 0].tolist() == part.labels.logit_CT[:, 0].tolist() == expected
        assert part.features.present_C.all() and len(part.features.vectors["penultimate"].vector_CR) == len(keys)
        assert part.requests.dense.tolist() == [dense[key] for key in keys]
    made_in = pd.Series(np.concatenate([part.requests.time for part in parts]))
    for index in (1, 2, 3):
        window = workspace.dataset.window(index)
        assert made_in.between(window.start, window.end, inclusive="left").any()


def test_shares_may_be_empty_where_there_are_more_steps_than_requests(lessons: Make, late: Workspace) -> None:
    made = lessons([1], windows=1, on=late, size=1)
    window = late.dataset.window(2)
    (replayed,) = of_window(made, late.dataset.window(1))
    parts = list(made.of(window))
    assert len(parts) == sum(len(part) for part in of_window(made, window)) > len(replayed)
    assert {len(part.requests) for part in parts} == {1, 2}
    for part in parts:
        rows = len(part.requests.item)
        assert len(part.features.logit_CT) == len(part.labels.present_C) == rows == part.requests.offsets[-1]


def test_a_window_that_teaches_nothing_replays_nothing(lessons: Make, workspace: Workspace) -> None:
    class Silent(Workspace):
        def requests(self, window: int) -> Requests:
            requests = super().requests(window)
            return requests.take(np.zeros(0, dtype=np.int64)) if window == 3 else requests

    made = lessons([1, 2], windows=2, on=Silent(workspace.dataset))
    assert list(made.of(workspace.dataset.window(3))) == []
    assert list(made.of(workspace.dataset.window(4)))
    after = lessons([1, 3], windows=2, on=Silent(workspace.dataset))
    replayed = len(of_window(after, workspace.dataset.window(1))[0])
    own = len(of_window(after, workspace.dataset.window(4))[0])
    assert sum(len(part.requests) for part in after.of(workspace.dataset.window(4))) == replayed + own
