"""What compact serving is said to cost is what its sums say."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.options import Options
from benchmarks.precision import CANDIDATES, HISTORY, request_batch
from benchmarks.precision_cost import FLOAT32, Costs, measure, smallest_first
from streaming.dataset import Dataset
from streaming.workspace import Workspace


def test_costs_are_relative_to_the_loss_of_float32_and_have_an_interval_over_users() -> None:
    costs, random = Costs(), np.random.default_rng(0)
    before_U = random.uniform(1, 2, 200)
    for user, loss in enumerate(before_U):
        costs.by_user[FLOAT32][user] = loss
        costs.by_user["steady."][user] = 1.001 * loss
        costs.by_user["noisy."][user] = loss + random.normal(0, 0.1)
    assert costs.cost("steady.") == pytest.approx((0.1, 0.1, 0.1))
    middle, low, high = costs.cost("noisy.")
    assert low < middle < high
    assert high - low == pytest.approx(4 * 100 * 0.1 / np.sqrt(200) / before_U.mean(), rel=0.2)
    assert costs.cost(FLOAT32) == (0.0, 0.0, 0.0)


def test_every_kernel_that_is_asked_for_is_faster_than_float32() -> None:
    times = smallest_first({"float32": int, "int8": int})
    assert times["int8"] < times["float32"]


def test_requests_have_the_lengths_that_are_claimed() -> None:
    batch = request_batch(3)
    assert batch.offsets.diff().tolist() == 3 * [CANDIDATES]
    assert batch.history["all"].offsets.diff().tolist() == 3 * [HISTORY]
    for times_L in batch.history["all"].time_L.split(HISTORY):
        assert bool((times_L.diff() >= 0).all())
        assert bool((times_L < batch.time_B[0]).all())
    assert torch.equal(batch.owner_C.bincount(), torch.full((3,), CANDIDATES))


@pytest.mark.slow
def test_costs_of_a_small_run_are_measured_for_its_snapshots_and_for_every_expert(tmp_path: Path) -> None:
    values = measure(Options(), tmp_path)
    for prefix in ("", "expert."):
        assert int(values[f"{prefix}ne_candidates"]) > 0
        low, cost, high = (float(values[f"{prefix}ne_cost_pct{end}"]) for end in ("_lo", "", "_hi"))
        assert low <= cost <= high
    # Tables of eight or four bits are smaller by what their row scales leave.
    assert 1 < float(values["int8_tables.table_ratio"]) < 4
    assert float(values["int8_tables.table_ratio"]) < float(values["int4_tables.table_ratio"]) < 8
    workspace = Workspace(Dataset.open(tmp_path / "generated" / "data"))
    assert values["expert.ne_candidates"] == len(workspace.requests(5).item)
