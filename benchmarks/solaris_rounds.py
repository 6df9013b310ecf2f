"""Rounds of speculation over a data set: what was there when it was asked for, and what experts would have read.

::

    WORK/teacher/                          a foundation model's run: every snapshot, and the vectors of live scoring
    WORK/budget_025_user/tae_log/          what a share of 25 % with that miss policy gives, in the TAE log's schema
    WORK/coverage/window=00012.json        counts of each window; written last

Shape legend: C candidates that were asked for.
"""

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import FoundationJob
from hypercast.serving.speculation.asked_log import AskedLog
from hypercast.serving.speculation.budget import Budget, Plan
from hypercast.serving.speculation.misses import MISSES, Answer, Miss, answer
from hypercast.serving.speculation.predictor import Predictor, Rule
from hypercast.serving.speculation.speculated import Speculated
from hypercast.serving.speculation.speculator import Speculator
from hypercast.store.tae_log import TaeLog
from hypercast.training.flops import flops_per_candidate
from streaming import files
from streaming.dataset import Window
from streaming.requests import Requests
from streaming.workspace import Workspace

SHARES = (10, 25, 50, 100)
"""Budgets, in % of what live scoring would cost."""
RULES: tuple[Rule, ...] = ("popularity", "repeats", "random")
"""What the learned ranking is compared with."""
Counts = dict[str, list[int]]
"""By what is counted, the number of candidates on each surface."""
_logger = logging.getLogger(__name__)


def variant(share: int, miss: Miss) -> str:
    """Name of what experts read at a budget and with a miss policy."""
    return f"budget_{share:03d}_{miss}"


def teacher(config: PlatformConfig, work: Path) -> FoundationJob:
    """The foundation model, trained on every window; goes on where it was stopped."""
    run = work / "teacher"
    publisher = config.foundation.publisher.model_copy(update={"keep": 1 << 20})
    foundation = config.foundation.model_copy(update={"publisher": publisher})
    job = FoundationJob(config.model_copy(update={"foundation": foundation, "run": run}), run)
    for window in job.workspace.dataset.windows:
        job.publish(window.index)
        job.run_window(window.index)
        _logger.info("teacher, window %d", window.index)
    return job


def encoding_cost(job: FoundationJob) -> float:
    """Operations of encoding one user of the last window's first requests, in those of scoring one candidate."""
    requests = job.workspace.requests(job.workspace.dataset.windows[-1].index).slice(0, 64)
    batch, model = job.learner.reader.batch(requests), job.publisher.model
    encoding = flops_per_candidate(partial(model.user, batch), candidates=len(requests))
    whole = flops_per_candidate(partial(job.publisher.scorer.score, batch), candidates=len(requests))
    return encoding / ((whole - encoding) * len(requests) / len(requests.item))


class Rounds:
    """One round a window, at its start, and everything that is told of it."""

    def __init__(self, job: FoundationJob, config: Speculator.Config, *, work: Path, encoding: float) -> None:
        self.workspace: Workspace = job.workspace
        self.work = work
        self.encoding = encoding
        self.speculator = config.build(
            model=job.publisher.model.config, workspace=self.workspace, registry=Registry(job.publisher.registry.root)
        )
        predictor, source = config.predictor, self.speculator.predictor.source
        self.rules: Mapping[Rule, Predictor] = {
            rule: predictor.model_copy(update={"rule": rule}).build(self.workspace, source=source) for rule in RULES
        }
        self.logs = {(s, m): TaeLog(work / variant(s, m) / "tae_log") for s in SHARES for m in MISSES}

    def run(self, window: Window) -> Counts:
        """Speculate for ``window`` before it begins; then look at what was asked for, count, and write the logs."""
        path = self.work / "coverage" / f"window={window.index:05d}.json"
        if not path.is_file():
            whole = Budget(share=max(SHARES) / 100)
            speculated = self.speculator.run(window.start, horizon=window.end - window.start, budget=whole)
            requests = self.workspace.requests(window.index)
            counts = self._told(window, speculated, requests) | self._predicted(window, requests)
            files.write_text(path, json.dumps(counts) + "\n")
        counted: Counts = json.loads(path.read_text(encoding="utf-8"))
        return counted

    def _told(self, window: Window, speculated: Speculated, requests: Requests) -> Counts:
        """Write what experts read, and count what of it is there."""
        counts = {"asked": self._by_surface(requests, np.ones(len(requests.item), bool))}
        strata = np.unique(requests.supervision.stratum).tolist()
        counts |= {f"asked_stratum_{s}": self._by_surface(requests, requests.supervision.stratum == s) for s in strata}
        user_id = requests.user_id[requests.owner]
        for (share, miss), log in self.logs.items():
            part = speculated.first(len(speculated) * share // max(SHARES))
            said = answer(part, user_id=user_id, item_id=requests.item_id, surface=requests.surface, miss=miss)
            self._write(log, window, speculated, requests, said)
            if miss == "zeros":
                counts[f"coverage_{share}"] = self._by_surface(requests, said.own)
                for s in strata:
                    own = said.own & (requests.supervision.stratum == s)
                    counts[f"coverage_{share}_stratum_{s}"] = self._by_surface(requests, own)
            else:
                counts[f"present_{miss}_{share}"] = self._by_surface(requests, said.present)
        return counts

    def _write(self, log: TaeLog, window: Window, speculated: Speculated, requests: Requests, said: Answer) -> None:
        rows = np.flatnonzero(said.present)
        owner = requests.owner[rows]
        tasks = self.workspace.inputs.tasks
        table = log.rows(
            snapshot=speculated.snapshot,
            request_id=requests.request_id[owner],
            candidate_id=requests.candidate_id[rows],
            item_id=requests.item_id[rows],
            time=requests.time[owner],
            representations={"penultimate": said.vector[rows]},
            teacher_logits={task: said.logit[rows, column] for column, task in enumerate(tasks)},
        )
        digest = self.workspace.dataset.requests_digest(window.index)
        log.write(snapshot=speculated.snapshot, window=window.index, table=table, requests_digest=digest)

    def _predicted(self, window: Window, requests: Requests) -> Counts:
        """What simpler rankings would have covered, and the learned one where encoding users is paid for."""
        counts: Counts = {}
        for rule, predictor in self.rules.items():
            counts |= self._covered(predictor, window, requests, name=rule, encoding=0.0)
        return counts | self._covered(
            self.speculator.predictor, window, requests, name="compute", encoding=self.encoding
        )

    def _covered(
        self, predictor: Predictor, window: Window, requests: Requests, *, name: str, encoding: float
    ) -> Counts:
        """What ``predictor`` would have covered at each share, without computing anything."""
        horizon, spans = window.end - window.start, predictor.config.ranker.spans
        predicted = predictor.predict(window.start, horizon=horizon)
        past = predictor.source.reader.between(window.start - spans * horizon, window.start)
        plan = Plan(predicted.pairs.user_id, predicted.chance, encoding=encoding)
        counts: Counts = {}
        for share in SHARES:
            cost = Budget(share=share / 100, encoding=encoding).cost(past, spans=spans)
            pairs = predicted.pairs.take(plan.within(cost))
            hit_C = predictor.was_predicted(AskedLog.of([requests]), pairs)
            counts[f"{name}_{share}"] = self._by_surface(requests, hit_C)
        return counts

    def _by_surface(self, requests: Requests, which_C: np.ndarray) -> list[int]:
        surfaces = len(self.workspace.inputs.surfaces)
        counted: list[int] = np.bincount(requests.surface[which_C], minlength=surfaces).tolist()
        return counted
