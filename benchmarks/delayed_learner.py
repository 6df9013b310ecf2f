"""A small model that learns a log with late labels window by window, under any policy.

Shape legend: N requests with one candidate each, F features, G levels of groups, H heads.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from foundation.hstu.delayed import DelayedHeads
from hypercast.training.random import initialise_
from streaming.labels.asked import AskedWindows, ask
from streaming.labels.attribution import DAY, NEVER, window_of
from streaming.labels.delays import DelayCurves
from streaming.labels.plan import LabelPlan
from streaming.labels.policy import Interpolation, LabelPolicy, Wait
from streaming.requests import Supervision
from streaming.schema import TaskConfig


@dataclass(frozen=True, kw_only=True)
class DelayedLog:
    """Requests in time order. Times are int64 microseconds ``[N]``.

    Attributes:
        task: with its attribution window.
        conversion_N: of the first conversion, NEVER for none.
        label_N, known_N: as attributed.
        feature_NF: float32.
        group_NG: int64, what delays may depend on, coarse to fine.
        boundaries: of the windows, in microseconds; nothing before the first or from the last on.
    """

    task: TaskConfig
    time_N: np.ndarray
    conversion_N: np.ndarray
    label_N: np.ndarray
    known_N: np.ndarray
    feature_NF: np.ndarray
    group_NG: np.ndarray
    boundaries: list[int]

    def __len__(self) -> int:
        return len(self.time_N)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Attributes:

    policy: None learns every label at its request: what no real learner can, the bound for all.
    asked_days: the windows to predict; other policies than interpolation answer for the attribution window only.
    hidden: width of the hidden layer; 0 for a logistic regression.
    refit_steps: 0 to see each example once, in mini-batches; otherwise so many steps over everything known so far, in
        each window that brings something new: for logs too small to learn from in one pass.
    decay: weight decay of refits.
    """

    policy: LabelPolicy | None
    asked_days: tuple[float, ...] = ()
    curves: DelayCurves.Config = field(default_factory=DelayCurves.Config)
    hidden: int = 32
    learning_rate: float = 1e-3
    batch_size: int = 256
    refit_steps: int = 0
    decay: float = 0.0
    seed: int = 0


class Reading(NamedTuple):
    """A window in days, and whether it is read with a delay curve for each group, or with one for all."""

    days: float
    personal: bool = True


def prequential(log: DelayedLog, recipe: Recipe) -> dict[Reading, np.ndarray]:
    """Probability of a conversion within each window asked for, float64 ``[N]``.

    Every window of the log is predicted whole by what was known at its start, then trained on (laws L2, L4).
    """
    plan = LabelPlan.of([log.task], {log.task.name: recipe.policy or Wait()})
    heads, learner = DelayedHeads(plan), _Learner(log, plan, recipe)
    known_N = log.known_N if recipe.policy is not None else log.time_N
    stored = Supervision(label=log.label_N[:, None], known_time=known_N[:, None], weight=known_N, stratum=known_N)
    said = {reading: np.full(len(log), np.nan) for reading in _readings(log, recipe)}
    for start, end in zip(log.boundaries[:-1], log.boundaries[1:], strict=True):
        first, last = np.searchsorted(log.time_N, [start, end])
        if first < last:
            new = slice(int(first), int(last))
            logit_CH = learner.logits(new)
            for reading, asked in _asked(log, plan, recipe, new, now=start).items():
                said[reading][new] = heads.read(logit_CH, asked)[:, 0].sigmoid().double().numpy()
        since = 0 if recipe.refit_steps else start
        # Nothing becomes known of a request whose attribution window has passed.
        rows = np.arange(np.searchsorted(log.time_N, since - window_of(log.task)), last)
        taught = plan.taught(stored.take(rows), time_C=log.time_N[rows], since=since, before=end)
        if recipe.refit_steps:
            if taught.known(since=start, before=end).any():
                learner.refit(heads, taught, rows)
        else:
            learner.train(heads, taught, rows)
    return said


def _readings(log: DelayedLog, recipe: Recipe) -> list[Reading]:
    whole = window_of(log.task) / DAY
    if not isinstance(recipe.policy, Interpolation):
        return [Reading(whole)]
    return [Reading(days, personal) for days in (*recipe.asked_days, whole) for personal in (True, False)]


def _asked(log: DelayedLog, plan: LabelPlan, recipe: Recipe, rows: slice, *, now: int) -> dict[Reading, AskedWindows]:
    """How to read the heads, by what is known before ``now``."""
    found, curves = {}, {}
    for reading in _readings(log, recipe):
        group_NG = log.group_NG if reading.personal else log.group_NG[:, :0]
        if isinstance(recipe.policy, Interpolation) and reading.personal not in curves:
            curves[reading.personal] = recipe.curves.estimate(
                time_N=log.time_N,
                conversion_N=log.conversion_N,
                group_NG=group_NG,
                now=now,
                window=window_of(log.task),
            )
        found[reading] = ask(
            plan,
            group_CG=group_NG[rows],
            curves={log.task.name: curves[reading.personal]} if curves else {},
            windows={log.task.name: round(reading.days * DAY)},
        )
    return found


class _Learner:
    """A network and what optimises it."""

    def __init__(self, log: DelayedLog, plan: LabelPlan, recipe: Recipe) -> None:
        self.recipe = recipe
        self.feature_NF = torch.from_numpy(log.feature_NF)
        width, heads = log.feature_NF.shape[1], len(plan.heads)
        if recipe.hidden:
            self.model: nn.Module = nn.Sequential(
                nn.Linear(width, recipe.hidden), nn.SiLU(), nn.Linear(recipe.hidden, heads)
            )
        else:
            self.model = nn.Linear(width, heads)
        initialise_(self.model, recipe.seed)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.decay)

    @torch.inference_mode()
    def logits(self, rows: slice) -> Tensor:
        return self.model(self.feature_NF[rows])

    def train(self, heads: DelayedHeads, taught: Supervision, rows: np.ndarray) -> None:
        """One pass over what ``taught`` says of ``rows``."""
        known_NH = taught.known_time != NEVER
        some = np.flatnonzero(known_NH.any(axis=1))
        # In the order in which labels became known: by time of request, every window would end on its own requests, of
        # which only early positives or fake negatives are known.
        became = np.where(known_NH, taught.known_time, 0)[some].max(axis=1)
        some = some[np.argsort(became, kind="stable")]
        for start in range(0, len(some), self.recipe.batch_size):
            self._step(heads, taught, rows, some[start : start + self.recipe.batch_size])

    def refit(self, heads: DelayedHeads, taught: Supervision, rows: np.ndarray) -> None:
        some = np.flatnonzero((taught.known_time != NEVER).any(axis=1))
        for _ in range(self.recipe.refit_steps):
            self._step(heads, taught, rows, some)

    def _step(self, heads: DelayedHeads, taught: Supervision, rows: np.ndarray, some: np.ndarray) -> None:
        label_CH, known_CH = torch.from_numpy(taught.label[some]), torch.from_numpy(taught.known_time[some] != NEVER)
        loss = heads.loss(self.model(self.feature_NF[torch.from_numpy(rows[some])]), label_CH, known_CH)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def normalised_entropy(probability: np.ndarray, truth: np.ndarray) -> float:
    """Log loss against labels, or against their known probabilities, over the entropy of the base rate."""
    clipped = np.clip(probability, 1e-7, 1 - 1e-7)
    loss = -(truth * np.log(clipped) + (1 - truth) * np.log1p(-clipped)).mean()
    base = truth.mean()
    return float(loss / -(base * np.log(base) + (1 - base) * np.log1p(-base)))
