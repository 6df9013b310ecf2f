"""A teacher whose words are dealt to the wrong candidates teaches nothing, in any mode; one that knows, does.

If an arm gained from a shuffled log, its gain would be one of size, of regularisation or of a leak.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from hypercast.store.segment import LOGIT
from streaming.dataset import Dataset
from streaming.importers.synthetic import Synthetic
from streaming.workspace import Workspace
from transfer import gain, sums

ARMS = ("control", "kd", "aux_head_adapter", "tae", "treated")
WINDOWS = 8
JUDGED = range(3, WINDOWS + 1)


def tastes(dataset: Dataset) -> dict[tuple[int, str], float]:
    """The logit of how often each user buys of each category when offered, over all windows: what is to be known."""
    workspace = Workspace(dataset)
    category = dict(zip(*(dataset.items()[name].to_pylist() for name in ("item_id", "category")), strict=True))
    seen: dict[tuple[int, str], list[float]] = {}
    for window in dataset.windows:
        requests = workspace.requests(window.index)
        users, bought = requests.user_id[requests.owner], requests.supervision.label[:, 0]
        for user, item, label in zip(users.tolist(), requests.item_id.tolist(), bought.tolist(), strict=True):
            seen.setdefault((user, category[item]), []).append(label)
    rates = {key: (sum(labels) + 0.5) / (len(labels) + 2) for key, labels in seen.items()}
    return {(user, kind): float(np.log(rate / (1 - rate))) for (user, kind), rate in rates.items()}


def teach(played, dataset: Dataset, *, shuffled: bool) -> None:
    """Publish every window again: the log says what each candidate's user thinks of its category, or another's."""
    known, random = tastes(dataset), np.random.default_rng(0)
    category = dict(zip(*(dataset.items()[name].to_pylist() for name in ("item_id", "category")), strict=True))
    for segment in played.log.segments():
        requests = Workspace(dataset).requests(segment.window)
        pairs = zip(requests.user_id[requests.owner].tolist(), requests.item_id.tolist(), strict=True)
        logit = np.array([known[user, category[item]] for user, item in pairs])
        logit = random.permutation(logit) if shuffled else logit
        noise = random.normal(size=(len(logit), segment.facts.representations["penultimate"] - 2))
        snapshot = played.registry.get(segment.snapshot)
        table = played.log.rows(
            snapshot=snapshot,
            **{name: np.copy(segment.numpy(name)) for name in ("request_id", "candidate_id", "item_id", "time")},
            representations={"penultimate": np.column_stack([logit, -logit, noise]).astype(np.float32)},
            teacher_logits={task: logit.astype(np.float32) for task in segment.facts.tasks},
        )
        assert table.column_names == [*segment.table.column_names] and LOGIT + "purchase" in table.column_names
        played.log.delete(segment.snapshot, segment.window)
        played.log.write(snapshot=snapshot, window=segment.window, table=table, requests_digest=segment.requests_digest)


def gains(played) -> dict[str, gain.Gain]:
    parts = [
        sums.of_window(played.run, surface=f"surface_{number}", window=window, task="purchase")
        for number in range(3)
        for window in JUDGED
    ]
    pairs = [(arm, "control") for arm in ARMS[1:]]
    return {one.arm: one for one in gain.gains(sums.combine(parts), surface="all", span="judged", pairs=pairs)}


@pytest.mark.slow
def test_a_shuffled_teacher_gives_no_gain_and_one_that_knows_does(fresh, tmp_path: Path) -> None:
    data = Synthetic.Config(users=60, items=48, windows=WINDOWS, candidates=8).build(tmp_path / "data")
    published = fresh(tmp_path / "published", ARMS).elsewhere(tmp_path / "published", data.path)
    foundation = published.foundation()
    for window in data.windows:  # never trained: what it says is replaced
        foundation.learner.prepare(window)
        foundation.publish(window.index)
    found = {}
    for shuffled in (False, True):
        played = published.copied(tmp_path / f"shuffled_{shuffled}", data.path)
        teach(played, data, shuffled=shuffled)
        experts = played.experts()
        for window in data.windows:
            experts.run_window(window.index, None)
        found[shuffled] = gains(played)
        shutil.rmtree(played.run)
    for arm in ARMS[1:]:
        assert found[False][arm].lo > 0, (arm, found[False][arm])
        assert found[True][arm].lo <= 0, (arm, found[True][arm])
