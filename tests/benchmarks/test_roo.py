"""The two layouts that `roo` compares hold the same impressions, and what it reports is counted right."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks import roo, roo_histories, roo_storage
from benchmarks.options import Options
from foundation.steps import FoundationLearner
from streaming.workspace import Workspace


def test_an_impression_has_everything_of_its_request(workspace: Workspace) -> None:
    dataset = workspace.dataset
    requests = dataset.requests(3)
    rows = roo_storage.impression_table(workspace, dataset.window(3), requests, history=4).to_pylist()
    users = {row["user_id"]: row for row in dataset.users().to_pylist()}
    events = [row for window in dataset.windows for row in dataset.engagements(window.index).to_pylist()]
    made = iter(rows)
    for request in requests.to_pylist():
        past = [e for e in events if e["user_id"] == request["user_id"] and e["time"] < request["time"]][-4:]
        supervision = request["supervision"]
        for candidate in range(len(request["item_id"])):
            row = next(made)
            assert row["request_id"] == request["request_id"] and row["time"] == request["time"]
            for name in ("candidate_id", "item_id", "surface", "dense"):
                assert row[name] == request[name][candidate]
            for name in supervision:
                assert row[f"supervision.{name}"] == supervision[name][candidate]
            for name in dataset.config.user_attributes:
                assert row[name] == users[request["user_id"]][name]
            for name in ("item_id", "surface", "action", "time"):
                assert row[f"history_{name}"] == [event[name] for event in past]
    assert next(made, None) is None


def test_storage_is_of_both_orders(workspace: Workspace, tmp_path: Path) -> None:
    values = roo_storage.storage(Options(work=tmp_path), workspace, history=4)
    ordered, shuffled = values["storage_ratio_time_ordered"], values["storage_ratio_shuffled"]
    assert values["storage_ratio"] == min(ordered, shuffled)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_training_holds_the_same_impressions_on_both_sides(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roo, "WINDOW", 3)
    monkeypatch.setattr(roo, "BATCHES", 2)
    monkeypatch.setattr(roo, "ROUNDS", 1)
    config = FoundationLearner.Config(batch_size=4)
    values = roo.training(workspace, config)
    requests = workspace.requests(workspace.dataset.windows[3].index).slice(0, 8)
    start, end = workspace.engagements.spans(requests.user_id, requests.time, max_length=config.model.history)
    length, candidates = end - start, np.diff(requests.offsets)
    assert values["train_impressions"] == candidates.sum()
    assert values["train_tokens_request"] == (2 + length + candidates).sum()
    assert values["train_tokens_impression"] == ((2 + length + 1) * candidates).sum()


def test_histories_are_found_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"USERS": 20, "A_WINDOW": 2, "ROWS": 4000, "LENGTH": 160, "REQUESTS": 8, "BATCHES": 5, "CHECKED": 3}
    for name, value in small.items():
        monkeypatch.setattr(roo_histories, name, value)
    monkeypatch.setattr(roo_histories, "keep_freed_memory", lambda: None)
    roo_histories.build_index(str(tmp_path))
    roo_histories.read_histories(str(tmp_path))
    built, read = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert built["index_build_rows_per_s"] > 0
    assert 0 < read["history_p50_ms"] <= read["history_p99_ms"] <= read["history_max_ms"]
    monkeypatch.setattr(roo_histories, "LENGTH", 1000)  # longer than any
    with pytest.raises(RuntimeError, match="not what it should be"):
        roo_histories.read_histories(str(tmp_path))


def test_blocks_are_one_window_each() -> None:
    first, second = (block for block, _ in zip(roo_histories.blocks(), range(2), strict=False))
    for window, block in enumerate((first, second)):
        assert block.time.min() >= window * roo_histories.WINDOW_SPAN
        assert block.time.max() < (window + 1) * roo_histories.WINDOW_SPAN
    assert all(a <= b for a, b in pairwise(first.user[:1000].tolist()))
