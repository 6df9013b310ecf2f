"""Stand-ins beside what they stand in for: by hand, and over a foundation model too small to mean anything."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import solaris_misses, solaris_rounds
from benchmarks.options import Values
from hypercast.store.ladder import Lookup
from hypercast.store.online import OnlineStore
from streaming.importers.synthetic import Synthetic
from tests.benchmarks.test_solaris import tiny


def test_figures_by_hand() -> None:
    true = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
    vectors = {"true": true, "nearest": 2 * true, "user": -true, "zeros": 0 * true}
    weight, bias, label = np.array([1.0, 0.0], np.float32), np.zeros((), np.float32), np.array([1, 0])
    columns = {"user": np.array([7, 7]), **solaris_misses._compared(vectors, label, weight_R=weight, bias=bias)}
    values = solaris_misses._told(columns)
    assert values["online_nearest_cosine"] == pytest.approx(1) and values["online_user_cosine"] == pytest.approx(-1)
    assert values["online_zeros_mse"] == values["online_nearest_mse"] == pytest.approx((12.5 + 2) / 2)
    assert values["online_over_user_mse"] == pytest.approx((12.5 + 2) / 2 * (1 - 4))
    assert values["online_user_logit_mse"] == pytest.approx(36 / 2)
    loss = {
        policy: np.log1p(np.exp(-logit)) + np.log(2) for policy, logit in (("true", 3), ("nearest", 6), ("zeros", 0))
    }
    assert values["online_true_ne"] == pytest.approx((loss["true"] / 2) / np.log(2))
    for policy in ("nearest", "zeros"):
        assert values[f"online_{policy}_ne_pct"] == pytest.approx(100 * (loss[policy] / loss["true"] - 1))
        assert values[f"online_{policy}_ne_pct_lo"] == pytest.approx(values[f"online_{policy}_ne_pct_hi"])  # one user


def test_what_is_asked_again_knows_nothing_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Synthetic.Config(users=16, items=12, windows=3, candidates=6, surfaces=2).build(tmp_path / "data")
    job = solaris_rounds.teacher(tiny(dataset.path, tmp_path), tmp_path)
    put: list[tuple[int, int, int]] = []
    real_put, real_get = OnlineStore.put, OnlineStore.get

    def putting(store: OnlineStore, **rows: Any) -> None:
        put.extend(np.stack([rows["user_id"], rows["item_id"], rows["computed_at"]], axis=1).tolist())
        real_put(store, **rows)

    def getting(store: OnlineStore, **asked: Any) -> Lookup:
        assert all(time < asked["now"] for *_, time in put)
        pairs = np.stack([asked["user_id"], asked["item_id"]], axis=1).tolist()
        assert not any([user, item] in pairs for user, item, _ in put)
        return real_get(store, **asked)

    monkeypatch.setattr(OnlineStore, "put", putting)
    monkeypatch.setattr(OnlineStore, "get", getting)

    def figures(requests: int) -> Values:
        put.clear()
        return solaris_misses.figures(
            job.workspace, job.publisher.log, job.publisher.registry, windows=[3], requests=requests
        )

    values = figures(50)
    assert put and values == figures(50)
    assert 0 < float(values["online_near"]) <= float(values["online_mean"]) <= 1
    low, mean, high = (float(values[f"online_nearest_mse{end}"]) for end in ("_lo", "", "_hi"))
    assert 0 < low <= mean <= high
    assert float(figures(1).get("online_missed", 0)) < float(values["online_missed"])
