"""What a run's teacher said, candidate by candidate, in whatever order and company they are asked for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streaming.errors import DataError
from streaming.workspace import Workspace
from tests.transfer.reference.conftest import TASK
from transfer import predictions
from transfer.gain import FM_HEAD
from transfer.predictions import Column
from transfer.reference.teacher_logit import TeacherLogit

Teach = Callable[..., Path]


def reader(workspace: Workspace, run: Path) -> TeacherLogit:
    return TeacherLogit(run=run, task=TASK, surfaces=workspace.inputs.surfaces, windows=workspace.dataset.windows)


def test_each_candidate_gets_what_was_said_of_it(workspace: Workspace, teach: Teach) -> None:
    run = teach(lambda requests: requests.candidate_id % 97 / 97 - 0.5)
    for window in (1, 4):
        requests = workspace.requests(window)
        logit_C1 = reader(workspace, run).of(requests)
        assert logit_C1.dtype == np.float32
        np.testing.assert_allclose(logit_C1[:, 0], requests.candidate_id % 97 / 97 - 0.5, atol=1e-5)


def test_l6_in_any_order_and_company(workspace: Workspace, teach: Teach) -> None:
    teacher = reader(workspace, teach(lambda requests: requests.candidate_id % 97 / 97))
    requests = workspace.requests(3)
    whole = teacher.of(requests)
    chosen = np.random.default_rng(0).permutation(len(requests))[:20]
    rows = np.concatenate([np.arange(requests.offsets[r], requests.offsets[r + 1]) for r in chosen])
    np.testing.assert_array_equal(teacher.of(requests.take(chosen)), whole[rows])
    np.testing.assert_array_equal(teacher.of(requests.on_surface(1)), whole[requests.surface == 1])
    assert teacher.of(requests.slice(0, 0)).shape == (0, 1)


def test_a_run_that_has_not_predicted_the_requests_is_refused(workspace: Workspace, teach: Teach) -> None:
    run, requests = teach(lambda requests: np.zeros(len(requests.item))), workspace.requests(2)
    surface = workspace.inputs.surfaces[0]
    table = predictions.read(run, surface=surface, window=2)
    predictions.write(run, surface=surface, window=2, table=table.slice(1))
    with pytest.raises(
        DataError, match=r"window=00002.parquet: not all candidates were predicted: the data set is not"
    ):
        reader(workspace, run).of(requests)
    predictions.write(run, surface=surface, window=2, table=table.slice(0, 0))
    with pytest.raises(DataError, match="not all candidates"):
        reader(workspace, run).of(requests)
    predictions.write(run, surface=surface, window=2, table=table.drop_columns([Column(TASK, FM_HEAD, 0).name]))
    with pytest.raises(DataError, match=r"no column 'p_purchase\.fm_head\.seed0': there is no teacher's prediction"):
        reader(workspace, run).of(requests)
    predictions.path_of(run, surface, 2).unlink()
    with pytest.raises(DataError, match=f"no predictions of surface '{surface}' in window 2"):
        reader(workspace, run).of(requests)
