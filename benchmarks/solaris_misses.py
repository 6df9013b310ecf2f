"""What stands in for a vector that the online store has not, beside the vector that it stands in for.

Requests of windows that are over are asked again in their order, each as of its own time, of an online store that holds
what the foundation model had computed for requests before it in that window (in a window all is of one snapshot; a
user's aggregate is the mean so far). Of the pairs of user and item a random :data:`HIDDEN` is never put: what they miss
is known from the log. Figures are of those among them that a neighbour lends a vector: for all others ``nearest`` and
``user`` answer the same.

================================== ====================================================================================
online_missed                      candidates asked for that had been hidden
online_near                        share of them that a neighbour lends a vector; all these have an aggregate too
online_mean                        share of them whose user has an aggregate
online_true_ne                     NE of the logit that the snapshot's main head reads off the vectors that were missed
online_POLICY_cosine, _lo, _hi     mean cosine to the vector that was missed; POLICY: ``nearest``, ``user``
online_POLICY_mse, _lo, _hi        mean squared error of its numbers; also of ``zeros``
online_POLICY_logit_mse, _lo, _hi  mean squared error of the logit that the head reads off it, from that one
online_POLICY_ne_pct, _lo, _hi     by how much % its NE exceeds ``online_true_ne``
online_over_user_FIGURE, _lo, _hi  of ``nearest`` less that of ``user``; for each figure
================================== ====================================================================================

Intervals are of 95 %, by drawing users with replacement. Only users to develop on are asked for.

Shape legend: C candidates of a window, M of them missed, R width of vectors, U users, B draws, K columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.options import Values
from hypercast.pins import Pin
from hypercast.registry import Registry
from hypercast.snapshot import Snapshot
from hypercast.store.ladder import Rung
from hypercast.store.memory import MemoryEngine
from hypercast.store.online import OnlineStore
from hypercast.store.tae_log import TaeLog
from streaming.requests import Requests, Supervision
from streaming.workspace import Workspace
from transfer.gain import draw_users
from transfer.metric.normalised_entropy import from_sums, log_loss
from transfer.sums import is_untouched

HIDDEN = 0.3
"""Share of pairs that are never put."""
REQUESTS = 300
"""Requests asked again in a window at most."""
REPLICATES = 1000
VECTOR = "penultimate"
MISSES: tuple[Literal["nearest", "user"], ...] = ("nearest", "user")
POLICIES = (*MISSES, "zeros")
Floats = NDArray[np.float32]
Columns = dict[str, np.ndarray]


def figures(
    workspace: Workspace, log: TaeLog, registry: Registry, *, windows: Sequence[int], requests: int = REQUESTS
) -> Values:
    """All figures, over ``windows`` of which the log has vectors and the registry the snapshots that computed them."""
    parts, missed = [], {"missed": 0, "near": 0, "mean": 0}
    for segment in (segment for segment in log.segments() if segment.window in windows):
        snapshot = registry.get(segment.snapshot)
        replay = _Replay(workspace, log, snapshot, segment.window)
        weights = snapshot.load()
        weight_R, bias = (weights[f"main_heads.{name}"].numpy()[0].astype(np.float32) for name in ("weight", "bias"))
        for vectors, rung_M, mean_M, user_M, label_M in replay.ask(requests):
            lent_M = rung_M == Rung.NEAREST
            missed["missed"] += len(lent_M)
            missed["near"] += int(lent_M.sum())
            missed["mean"] += int((mean_M == Rung.USER).sum())
            lent = {name: vector_MR[lent_M] for name, vector_MR in vectors.items()}
            parts.append({"user": user_M[lent_M], **_compared(lent, label_M[lent_M], weight_R=weight_R, bias=bias)})
    if not missed["near"]:
        return {}
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    shares = {f"online_{name}": missed[name] / missed["missed"] for name in ("near", "mean")}
    return {"online_missed": missed["missed"], **shares, **_told(columns)}


class _Replay:
    """A window's requests, asked again of a store that knows what came before each."""

    def __init__(self, workspace: Workspace, log: TaeLog, snapshot: Snapshot, window: int) -> None:
        self.snapshot = snapshot
        self.requests: Requests = workspace.requests(window)
        owner = self.requests.owner
        self.time_C, self.user_C = self.requests.time[owner], self.requests.user_id[owner]
        self.pin = Pin(expert="misses", lineage=snapshot.lineage, version=snapshot.version)
        self.truth = log.read(
            window=window,
            pin=self.pin,
            request_id=self.requests.request_id[owner],
            candidate_id=self.requests.candidate_id,
            time=self.time_C,
            width=snapshot.dims[VECTOR],
            tasks=[],
            requests_digest=workspace.dataset.requests_digest(window),
        )
        self.random = np.random.default_rng([0, window])
        pair_C = np.unique(np.stack([self.user_C, self.requests.item_id], axis=1), axis=0, return_inverse=True)[1]
        pair_C = pair_C.reshape(-1)
        self.hidden_C = (self.random.random(int(pair_C.max(initial=-1)) + 1) < HIDDEN)[pair_C]
        engine = MemoryEngine()
        self.near, self.mean = (OnlineStore(config=OnlineStore.Config(miss=m), engine=engine) for m in MISSES)
        self.users, self.place_C = np.unique(self.user_C, return_inverse=True)
        self.sum_UR, self.count_U = np.zeros((len(self.users), snapshot.dims[VECTOR])), np.zeros(len(self.users))

    def ask(self, most: int) -> Iterator[tuple[Mapping[str, Floats], np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Of some requests, drawn at random: vectors by policy and the true ones, rungs with ``nearest`` and with
        ``user``, users, and labels of the first task; all of M hidden candidates.
        """
        known_C = self.requests.supervision.known_time[:, 0] != Supervision.NEVER
        asked_C = self.hidden_C & known_C & self.truth.present & ~is_untouched(self.user_C)
        owners = np.unique(self.requests.owner[asked_C])
        drawn = self.random.choice(owners, size=min(most, len(owners)), replace=False)
        shown = np.flatnonzero(~self.hidden_C & self.truth.present)
        shown = shown[np.argsort(self.time_C[shown], kind="stable")]
        before = 0
        for request in drawn[np.argsort(self.requests.time[drawn], kind="stable")]:
            now = int(self.requests.time[request])
            until = int(np.searchsorted(self.time_C[shown], now))
            self._put(shown[before:until])
            before = until
            start, end = self.requests.offsets[request : request + 2]
            row = start + np.flatnonzero(asked_C[start:end])
            keys = {"user_id": self.user_C[row], "item_id": self.requests.item_id[row]}
            keys["surface"] = self.requests.surface[row]
            width = self.snapshot.dims[VECTOR]
            near, mean = (store.get(pin=self.pin, now=now, width=width, **keys) for store in (self.near, self.mean))
            vectors = {"true": self.truth.vector[row], "nearest": near.vector, "user": mean.vector}
            vectors["zeros"] = np.zeros_like(near.vector)
            yield vectors, near.rung, mean.rung, self.user_C[row], self.requests.supervision.label[row, 0]

    def _put(self, row: np.ndarray) -> None:
        if not len(row):
            return
        said = {"computed_at": self.time_C[row], "history_end": self.time_C[row]}
        keys = {"surface": self.requests.surface[row], "item_id": self.requests.item_id[row]}
        vector = self.truth.vector[row]
        self.near.put(snapshot=self.snapshot, user_id=self.user_C[row], vector=vector, **keys, **said)
        place = self.place_C[row]
        np.add.at(self.sum_UR, place, vector)
        np.add.at(self.count_U, place, 1)
        last = len(row) - 1 - np.unique(place[::-1], return_index=True)[1]  # of each user, who are ascending
        user = place[last]
        mean = (self.sum_UR[user] / self.count_U[user, None]).astype(np.float32)
        time = self.time_C[row[last]]
        self.near.put_users(
            snapshot=self.snapshot, user_id=self.users[user], vector=mean, computed_at=time, history_end=time
        )


def _compared(vectors: Mapping[str, Floats], label_M: np.ndarray, *, weight_R: Floats, bias: Floats) -> Columns:
    """What is told of each missed candidate, by figure, float64 ``[M]``."""
    true_MR = vectors["true"].astype(np.float64)
    logit_M = true_MR @ weight_R + bias
    told: Columns = {"rows": np.ones(len(true_MR)), "positives": label_M.astype(np.float64)}
    told["true_loss"] = log_loss(_chance(logit_M), label_M)
    for policy in POLICIES:
        vector_MR = vectors[policy].astype(np.float64)
        said_M = vector_MR @ weight_R + bias
        told[f"{policy}_mse"] = np.square(vector_MR - true_MR).mean(axis=1)
        told[f"{policy}_logit_mse"] = np.square(said_M - logit_M)
        told[f"{policy}_loss"] = log_loss(_chance(said_M), label_M)
        if policy != "zeros":
            lengths_M = np.linalg.norm(vector_MR, axis=1) * np.linalg.norm(true_MR, axis=1)
            told[f"{policy}_cosine"] = (vector_MR * true_MR).sum(axis=1) / np.maximum(lengths_M, 1e-12)
    return told


def _told(columns: Columns) -> Values:
    """Means and paired differences with their intervals."""
    users, user_M = np.unique(columns["user"], return_inverse=True)
    names = [name for name in columns if name != "user"]
    sums_UK = np.stack([np.bincount(user_M, weights=columns[name]) for name in names], axis=1)
    draws = draw_users(np.random.default_rng(0), len(users), REPLICATES)
    total_BK = np.concatenate([np.ones((1, len(users))) @ sums_UK, *(drawn @ sums_UK for drawn in draws)])
    total = dict(zip(names, total_BK.T, strict=True))
    found: Columns = {}
    for figure in ("cosine", "mse", "logit_mse", "ne_pct"):
        for policy in MISSES if figure == "cosine" else POLICIES:
            if figure == "ne_pct":
                found[f"{policy}_{figure}"] = 100 * (total[f"{policy}_loss"] / total["true_loss"] - 1)
            else:
                found[f"{policy}_{figure}"] = total[f"{policy}_{figure}"] / total["rows"]
        found[f"over_user_{figure}"] = found[f"nearest_{figure}"] - found[f"user_{figure}"]
    loss, positives, rows = (float(total[name][0]) for name in ("true_loss", "positives", "rows"))
    values: Values = {"online_true_ne": from_sums(loss=loss, positives=positives, rows=rows)}
    for name, value_B in found.items():
        low, high = np.quantile(value_B[1:], [0.025, 0.975])
        ends = {"": value_B[0], "_lo": low, "_hi": high}
        values |= {f"online_{name}{end}": float(value) for end, value in ends.items()}
    return values


def _chance(logit_M: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit_M))
