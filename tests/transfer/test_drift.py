"""Drift is nothing between equals, known between known distributions, and an alarm means something."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypercast.errors import RegistryError
from hypercast.registry import Registry
from hypercast.snapshot import Snapshot
from hypercast.store.adapter import Adapter
from streaming.errors import DataError
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer import probe as probes
from transfer.comparison import Comparison
from transfer.drift import DriftMeter, centroid, median_distance, mmd
from transfer.probe import Probe

SEEDS = st.integers(0, 2**32 - 1)


def own_groups(rows: int) -> np.ndarray:
    return np.arange(rows, dtype=np.int64)


def test_the_centroid_moves_by_spreads() -> None:
    before_ND = np.array([[0.0, 0.0], [2.0, 0.0]])  # one away from the mean, both
    assert centroid(before_ND, before_ND) == 0
    assert centroid(before_ND, before_ND + np.array([3.0, 4.0])) == pytest.approx(5.0)
    assert np.isnan(centroid(np.ones((3, 2)), np.zeros((3, 2))))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, scale=st.floats(0.1, 10), move=st.floats(-5, 5))
def test_drift_does_not_depend_on_where_the_origin_is_and_how_long_a_unit(seed: int, scale: float, move: float) -> None:
    random = np.random.default_rng(seed)
    before_ND, after_ND = random.normal(size=(30, 3)), random.normal(size=(30, 3)) + 0.5
    there = [scale * vector_ND + move for vector_ND in (before_ND, after_ND)]
    assert centroid(*there) == pytest.approx(centroid(before_ND, after_ND), rel=1e-6)
    width = median_distance(before_ND)
    assert median_distance(there[0]) == pytest.approx(scale * width, rel=1e-6)
    here = mmd(before_ND, after_ND, group_N=own_groups(30), bandwidth=width, seed=0)
    assert mmd(*there, group_N=own_groups(30), bandwidth=scale * width, seed=0) == pytest.approx(here, abs=1e-7)


def plain_mmd(x_ND: np.ndarray, y_ND: np.ndarray, group_N: np.ndarray, bandwidth: float) -> float:
    """The definition, pair by pair."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * bandwidth**2)))

    pairs = [(i, j) for i in range(len(x_ND)) for j in range(len(x_ND)) if group_N[i] != group_N[j]]
    total = sum(k(x_ND[i], x_ND[j]) + k(y_ND[i], y_ND[j]) - k(x_ND[i], y_ND[j]) - k(x_ND[j], y_ND[i]) for i, j in pairs)
    return total / len(pairs)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, groups=st.integers(2, 5))
def test_the_estimator_is_its_definition(seed: int, groups: int) -> None:
    random = np.random.default_rng(seed)
    x_ND, y_ND = random.normal(size=(9, 2)), random.normal(size=(9, 2)) + 1
    group_N = random.permutation(np.arange(9) % groups)
    value, _ = mmd(x_ND, y_ND, group_N=group_N, bandwidth=1.3, seed=0)
    assert value == pytest.approx(plain_mmd(x_ND, y_ND, group_N, 1.3), abs=1e-12)
    assert mmd(x_ND, x_ND, group_N=group_N, bandwidth=1.3, seed=0) == pytest.approx((0, 0), abs=1e-12)


def test_it_is_unbiased_and_knows_what_two_gaussians_are_apart() -> None:
    """E k over normals of variance 1 and kernel width s: s / sqrt(s^2 + 2) exp(-shift^2 / (2 (s^2 + 2)))."""
    random, width = np.random.default_rng(0), 1.5
    scale, spread = width / (width**2 + 2) ** 0.5, 2 * (width**2 + 2)
    for shift in (0.0, 0.7):
        truth = 2 * scale * (1 - np.exp(-(shift**2) / spread))
        draws = [
            mmd(
                random.normal(size=(60, 1)),
                random.normal(size=(60, 1)) + shift,
                group_N=own_groups(60),
                bandwidth=width,
                seed=0,
            )[0]
            for _ in range(200)
        ]
        error = np.std(draws) / len(draws) ** 0.5
        assert abs(np.mean(draws) - truth) < 4 * error < 0.02
    assert min(draws) < 0.05 < max(draws)


def test_the_null_is_exceeded_once_in_a_hundred_by_chance_and_always_by_a_shift() -> None:
    random = np.random.default_rng(1)
    group_N = np.repeat(np.arange(32), 4)
    chance = shifted = 0
    for _ in range(200):
        history_ND = np.repeat(random.normal(size=(32, 3)), 4, axis=0)  # what candidates of a request share
        x_ND, y_ND = (history_ND + 0.3 * random.normal(size=(128, 3)) for _ in range(2))
        value, null = mmd(x_ND, y_ND, group_N=group_N, bandwidth=2.0, seed=0)
        chance += value > null
        value, null = mmd(x_ND, y_ND + 0.3, group_N=group_N, bandwidth=2.0, seed=0)
        shifted += value > null
    assert chance <= 8 and shifted == 200  # 2 expected; more than 8 come once in 4000 times


def test_the_alarm() -> None:
    random = np.random.default_rng(2)
    before_ND = random.normal(size=(40, 3))
    meter = DriftMeter.Config(centroid_alarm=0.5, mmd_alarm=0.1).build()

    def alarm(after_ND: np.ndarray) -> bool:
        return meter.measure(before_ND, after_ND, group_N=own_groups(40), bandwidth=median_distance(before_ND)).alarm

    assert not alarm(before_ND)
    assert not alarm(before_ND + 0.05)
    assert alarm(before_ND + 1.0)
    assert alarm(4 * (before_ND - before_ND.mean(axis=0)) + before_ND.mean(axis=0))  # the centroid has not moved


def test_vectors_that_are_all_equal_and_one_request_alone() -> None:
    assert median_distance(np.ones((5, 2))) == 1.0 and median_distance(np.ones((1, 2))) == 1.0
    assert np.isnan(mmd(np.ones((4, 2)), np.ones((4, 2)), group_N=np.zeros(4, np.int64), bandwidth=1.0, seed=0)).all()


def test_the_probe_is_spread_over_requests_and_kept_as_ids(workspace: Workspace, tmp_path: Path) -> None:
    requests = workspace.requests(workspace.dataset.windows[0].index)
    probe = probes.draw(requests, window=1, size=5, candidates=20, seed=0)
    again = probes.draw(requests, window=1, size=5, candidates=20, seed=0)
    np.testing.assert_array_equal(probe.request_id, again.request_id)
    np.testing.assert_array_equal(probe.candidate_id, again.candidate_id)
    assert np.unique(probe.request_id, return_counts=True)[1].tolist() == [4] * 5
    other = probes.draw(requests, window=1, size=5, candidates=20, seed=1)
    assert not np.array_equal(probe.request_id, other.request_id)
    assert len(probes.draw(requests, window=1, size=10**6, candidates=10**6, seed=0).request_id) == len(requests.item)
    replace(probe, bandwidth=0.1 + 0.2).write(tmp_path)
    read = Probe.read(tmp_path)
    assert read is not None and read.bandwidth == 0.1 + 0.2 and read.window == 1
    chosen = probe.requests_of(requests)
    rows = read.rows(chosen)
    np.testing.assert_array_equal(chosen.request_id[chosen.owner][rows], probe.request_id)
    np.testing.assert_array_equal(chosen.candidate_id[rows], probe.candidate_id)
    with pytest.raises(DataError, match="the data set has changed under the run"):
        read.rows(requests.slice(0, 1))
    assert Probe.read(tmp_path / "none") is None
    for broken in ("{", json.dumps({"window": 1})):
        (tmp_path / "probe.json").write_text(broken)
        with pytest.raises(RegistryError, match=r"probe\.json: not what was written"):
            Probe.read(tmp_path)


class Lineage:
    """Stands for a registry: one snapshot for each of the data set's windows, as of its end."""

    def __init__(self, workspace: Workspace) -> None:
        self.all = [
            Snapshot(
                name=f"FM@{number:04d}",
                lineage="FM",
                version=number,
                watermark=window.end,
                path=Path("nowhere"),
                manifest={"schema_hash": "one"},
            )
            for number, window in enumerate(workspace.dataset.windows, start=1)
        ]
        self.kept = len(self.all)

    def list(self, lineage: str) -> list[Snapshot]:
        return self.all[-self.kept :]


def comparison_of(workspace: Workspace, folder: Path, scored: list[str]) -> tuple[Comparison, Lineage]:
    lineage = Lineage(workspace)

    def score(snapshot: Snapshot, requests: Requests) -> np.ndarray:
        """A space that turns and moves a little with each version."""
        scored.append(snapshot.name)
        start = np.stack([np.sin(requests.item), np.cos(3 * requests.item)], axis=1)
        angle = 0.1 * snapshot.version
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return (start @ turn + 0.2 * snapshot.version).astype(np.float32)

    registry: Any = SimpleNamespace(list=lineage.list)
    assert set(vars(registry)) <= set(dir(Registry))
    made = Comparison(
        config=DriftMeter.Config(requests=8, candidates=32, centroid_alarm=0.3),
        folder=folder,
        registry=registry,
        workspace=workspace,
        score=score,
    )
    return made, lineage


def test_snapshots_are_compared_with_the_one_before(workspace: Workspace, tmp_path: Path) -> None:
    scored: list[str] = []
    made, lineage = comparison_of(workspace, tmp_path, scored)
    told = [made.compare(snapshot, pinned=[lineage.all[0]]) for snapshot in lineage.all[:4]]
    assert told[0] == {}
    for metrics in told[1:]:
        assert metrics["drift/centroid"] > 0.1 and metrics["adapter/relative_error"] < 1e-4
    assert told[1].keys() == {
        *(f"drift/{name}" for name in ("centroid", "mmd", "mmd_null", "alarm")),
        *(f"adapter/{name}" for name in ("relative_error", "r2")),
    }
    assert scored == ["FM@0001", "FM@0002", "FM@0003", "FM@0004"]  # each once
    assert [one.target for one in made.adapters("FM@0004")] == ["FM@0001", "FM@0003"]
    turn = made.adapters("FM@0004")[0].weight_DE
    np.testing.assert_allclose(turn @ turn.T, np.eye(2), atol=1e-4)


def test_comparing_again_says_the_same(workspace: Workspace, tmp_path: Path) -> None:
    """After a kill, the same bits: from the probe that was kept, by a process that has nothing in memory."""
    first, lineage = comparison_of(workspace, tmp_path, [])
    told = [first.compare(snapshot, pinned=[]) for snapshot in lineage.all[:3]]
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second, _ = comparison_of(workspace, tmp_path, [])
    assert [second.compare(snapshot, pinned=[]) for snapshot in lineage.all[2:3]] == told[2:]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_what_took_no_part_in_the_probes_window_is_not_compared(workspace: Workspace, tmp_path: Path) -> None:
    made, lineage = comparison_of(workspace, tmp_path, [])
    untrained = replace(lineage.all[0], version=9, name="FM@0009", watermark=workspace.dataset.windows[0].start)
    assert made.compare(untrained, pinned=[]) == {} and not list(tmp_path.iterdir())
    made.compare(lineage.all[1], pinned=[])
    probe = Probe.read(tmp_path)
    assert probe is not None and probe.window == workspace.dataset.windows[1].index
    assert made.compare(lineage.all[1], pinned=[]) == {}  # the one before had not seen it
    assert made.compare(lineage.all[2], pinned=[untrained]).keys() and len(made.adapters("FM@0003")) == 1
    other = replace(lineage.all[2], manifest={"schema_hash": "two"})
    assert made.compare(other, pinned=[]) == {}


def test_adapters_of_snapshots_that_are_gone_go_too(workspace: Workspace, tmp_path: Path) -> None:
    made, lineage = comparison_of(workspace, tmp_path, [])
    for snapshot in lineage.all[:3]:
        made.compare(snapshot, pinned=[])
    lineage.all, lineage.kept = lineage.all[:4], 2
    made.compare(lineage.all[3], pinned=[])
    assert {path.name for path in tmp_path.iterdir()} == {
        "probe.json",
        "FM@0003-to-FM@0002.adapter",
        "FM@0004-to-FM@0003.adapter",
    }
    assert isinstance(made.adapters("FM@0004")[0], Adapter)
