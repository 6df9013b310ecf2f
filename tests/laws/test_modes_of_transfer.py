"""Every mode of transfer keeps the laws: each reads what it is meant to of the log, of the past, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hypercast.codec import arrow
from hypercast.store.segment import LOGIT
from streaming.dataset import Dataset
from streaming.features import DENSE

MODES = (
    "control",
    "kd",
    "aux_head",
    "tae_aux_head_adapter",
    "user_embedding",
    "tae_sequence",
    "tae_concat",
    "tae_cross_attention",
    "tae_history",
    "c2al",
    "tae_c2al",
    "finetune",
)
READ_VECTORS = {
    "tae_aux_head_adapter",
    "tae_sequence",
    "tae_concat",
    "tae_cross_attention",
    "user_embedding",
    "tae_c2al",
    "finetune",
}
SCORED = 3
"""The window after those that were trained on."""


@pytest.fixture(scope="module")
def played(fresh, tmp_path_factory: pytest.TempPathFactory):
    """Two windows trained with every mode, the third published. Copy its folder before using it."""
    done = fresh(tmp_path_factory.mktemp("modes"), MODES).go(windows=SCORED - 1)
    done.foundation().publish(SCORED)
    return done


@pytest.fixture(scope="module")
def base(played, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return played.copied(tmp_path_factory.mktemp("modes_base") / "run", dataset.path).predict(SCORED)


def flip(played, window: int, *, vector: float = 1.0, logit: float = 1.0) -> None:
    """Publish ``window`` again, times these factors."""
    (segment,) = (one for one in played.log.segments() if one.window == window)
    snapshot = played.registry.get(segment.snapshot)
    names = segment.facts.representations
    table = played.log.rows(
        snapshot=snapshot,
        **{name: np.copy(segment.numpy(name)) for name in ("request_id", "candidate_id", "item_id", "time")},
        representations={name: vector * arrow.view(segment.table.column(name)).astype(np.float32) for name in names},
        teacher_logits={task: logit * segment.numpy(LOGIT + task) for task in segment.facts.tasks},
    )
    played.log.delete(segment.snapshot, window)
    played.log.write(snapshot=snapshot, window=window, table=table, requests_digest=segment.requests_digest)


def test_what_the_arms_read_is_published(played) -> None:
    assert played.registry.current("FM").dims == {
        "penultimate": 8,
        "sequence": 16,
        "user": 16,
        "tower_input": 3 * 16 + 8 * len(DENSE),
    }


@pytest.mark.parametrize(
    ("window", "factors", "expected"),
    [
        (SCORED, {"vector": -1.0}, READ_VECTORS),
        (SCORED, {"logit": -1.0}, set()),  # teachers' labels are read in training only
        (SCORED - 1, {"vector": -1.0}, {"tae_history"}),
        (SCORED - 1, {"logit": -1.0}, set()),
    ],
)
def test_each_mode_reads_its_part_of_the_log(
    window: int,
    factors: dict[str, float],
    expected: set[str],
    played,
    base: pd.DataFrame,
    dataset: Dataset,
    moved: Callable[[pd.DataFrame, pd.DataFrame], set[str]],
    tmp_path: Path,
) -> None:
    again = played.copied(tmp_path / "run", dataset.path)
    flip(again, window, **factors)
    assert moved(base, again.predict(SCORED)) - {"fm_head"} == expected


def test_teachers_labels_of_a_window_change_what_is_learned_of_it_and_no_other_arm(
    played, dataset: Dataset, moved, tmp_path: Path
) -> None:
    runs = []
    for name, factor in (("true", 1.0), ("turned", -1.0)):
        again = played.copied(tmp_path / name, dataset.path)
        flip(again, SCORED, logit=factor)
        again.experts().run_window(SCORED, None)
        again.foundation().run_window(SCORED)
        runs.append((again.said(SCORED), again.score(SCORED + 1)))
    assert moved(runs[0][0], runs[1][0]) == {"fm_head"}
    assert moved(runs[0][1], runs[1][1]) == {"kd", "aux_head", "tae_aux_head_adapter"}


def test_l1_l3_the_future_changes_nothing(played, base: pd.DataFrame, dataset: Dataset, changed, moved, tmp_path: Path):
    """Of engagements at or after the middle of the scored window, earlier requests know nothing, and later ones do."""
    rows = dataset.requests(SCORED).to_pylist()
    now = rows[len(rows) // 2]["time"]

    def others(window: int, given: list[dict]) -> list[dict]:
        for row in given:
            if row["time"] >= now:
                row |= {"item_id": 1000 + (row["item_id"] + 7) % 24, "action": 1 - row["action"], "surface": -1}
        return given

    again = played.copied(tmp_path / "run", changed(engagements=others))
    (segment,) = (one for one in again.log.segments() if one.window == SCORED)
    again.log.delete(segment.snapshot, SCORED)
    scores = again.score(SCORED)
    early = [row["request_id"] for row in rows if row["time"] <= now]
    late = [row["request_id"] for row in rows if row["time"] > now]
    assert moved(base.loc[early], scores.loc[early]) == set()
    assert moved(base.loc[late], scores.loc[late]) == {*MODES, "fm_head"}


def test_l6_other_candidates_change_no_score(played, base: pd.DataFrame, changed, tmp_path: Path) -> None:
    def kept(window: int, rows: list[dict]) -> list[dict]:
        for row in rows if window == SCORED else []:
            for name in ("candidate_id", "item_id", "surface", "dense"):
                row[name] = [row[name][place] for place in (4, 1, 3)]
            for name, values in row["supervision"].items():
                row["supervision"][name] = [values[place] for place in (4, 1, 3)]
        return rows

    again = played.copied(tmp_path / "run", changed(requests=kept))
    (segment,) = (one for one in again.log.segments() if one.window == SCORED)
    again.log.delete(segment.snapshot, SCORED)
    scores = again.score(SCORED)
    assert len(scores) == len(base) / 2
    assert (base.loc[scores.index] - scores).abs().max().max() < 1e-6
