"""What passes from the foundation model to an expert passes through the embedding log, and through nothing else."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hypercast.codec import arrow
from hypercast.store.segment import LOGIT
from streaming.dataset import Dataset

SCORED = 4
"""The window after those that ``resumed`` was trained on."""


def rewrite(played, *, vector: float, logit: float) -> None:
    """Publish the scored window's rows again, times these factors."""
    (segment,) = (one for one in played.log.segments() if one.window == SCORED)
    snapshot = played.registry.get(segment.snapshot)
    table = played.log.rows(
        snapshot=snapshot,
        **{name: np.copy(segment.numpy(name)) for name in ("request_id", "candidate_id", "item_id", "time")},
        representations={"penultimate": vector * arrow.view(segment.table.column("penultimate")).astype(np.float32)},
        teacher_logits={task: logit * segment.numpy(LOGIT + task) for task in segment.facts.tasks},
    )
    played.log.delete(segment.snapshot, SCORED)
    played.log.write(snapshot=snapshot, window=SCORED, table=table, requests_digest=segment.requests_digest)


@pytest.mark.parametrize(
    ("vector", "logit", "expected"),
    [
        (1, 1, set()),
        (-1, 1, {"tae", "treated"}),
        (1, -1, {"logit_residual", "treated", "fm_head"}),
        (-1, -1, {"tae", "logit_residual", "treated", "fm_head"}),
    ],
)
def test_flipping_the_log_moves_the_arms_that_read_it(
    vector: float, logit: float, expected: set[str], base: pd.DataFrame, resumed, dataset: Dataset, moved
) -> None:
    played = resumed(dataset.path)
    played.foundation().publish(SCORED)
    rewrite(played, vector=vector, logit=logit)
    assert moved(base, played.predict(SCORED)) == expected


def test_without_a_segment_every_row_is_a_miss_and_every_arm_still_predicts(
    base: pd.DataFrame, resumed, dataset: Dataset, moved, tmp_path: Path
) -> None:
    played = resumed(dataset.path)
    played.foundation().publish(SCORED)
    whole = played.copied(tmp_path / "whole", dataset.path)
    (segment,) = (one for one in played.log.segments() if one.window == SCORED)
    played.log.delete(segment.snapshot, SCORED)
    counters = ("coverage/fresh", "coverage/stale", "coverage/expired", "coverage/miss")
    for each, expected in ((whole, 0.0), (played, 1.0)):
        for metrics in each.experts().run_window(SCORED, None).values():
            assert metrics["coverage/miss"] == expected
            assert sum(metrics[name] for name in counters) == 1.0
            assert all(np.isfinite(value) for value in metrics.values())  # trained on as well
    scores = played.said(SCORED)
    assert moved(base, scores) == {"tae", "logit_residual", "treated", "fm_head"}
    assert ((scores > 0) & (scores < 1)).all().all()
    assert moved(base, whole.said(SCORED)) == set()
