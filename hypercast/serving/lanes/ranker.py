"""Answers questions: asks the foundation model, else the online store, and lets the surface's expert score.

Three tiers, after Foundation-Expert (arXiv 2508.02929): the foundation model online, what it computes behind for the
next time, and the experts. Each has a lane of its own (:mod:`hypercast.serving.lanes.lane`), so that none waits for
another: a request that the foundation model cannot answer in time is answered from a lower rung at once
(:mod:`hypercast.serving.lanes.ladder`). A request holds one bundle of models from its first step to its last.

Shape legend: C candidates, T tasks.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol, cast

import numpy as np

from hypercast.pins import Pin
from hypercast.serving.config import ServingConfig
from hypercast.serving.features.asked import Asked, merge
from hypercast.serving.features.question import Question
from hypercast.serving.lanes import ladder
from hypercast.serving.lanes.ladder import Floats, Given
from hypercast.serving.lanes.lag import Lag
from hypercast.serving.lanes.lane import Lane, LaneFull, TooLate
from hypercast.serving.lanes.ranking import READS_LOGITS, Answer, Busy, NoExpert, Ranking, TooEarly
from hypercast.serving.metrics import Metrics
from hypercast.serving.models.bundle import Bundle
from hypercast.snapshot import Snapshot
from hypercast.store.engine import UnreachableError
from hypercast.store.ladder import Rung
from hypercast.store.online import OnlineStore

_logger = logging.getLogger(__name__)

QUIET_SECONDS = 0.005
"""Lag of the event loop up to which it has time to spare."""
EXPERT_BATCH = 32
"""Requests that an expert scores at once, at most: sixteen take it little more than twice as long as one."""
STORE_SECONDS = 0.01
"""For which the online store is waited for where the deadline is not earlier."""


class Features(Protocol):
    """Makes what models read of questions, as of each one's time: a feature state."""

    def requests(self, questions: Sequence[Question]) -> Asked: ...


class Keeper(Protocol):
    """Is told what was served, and what was computed; must not wait."""

    def served(self, asked: Asked, given: Given) -> None: ...

    def computed(self, asked: Asked, given: Given, snapshot: Snapshot) -> None: ...


class Ranker:
    """See the module.

    Args:
        config: of the service.
        features: as of when questions are asked.
        surfaces: names, in the data set's order.
        tasks: how many the foundation model has.
        current: the bundle to use from now on; called once a request.
        store: vectors computed earlier; None for none.
        keeper: is told of vectors; None where nothing is kept.
    """

    def __init__(
        self,
        *,
        config: ServingConfig,
        features: Features,
        surfaces: list[str],
        tasks: int,
        current: Callable[[], Bundle],
        store: OnlineStore | None,
        keeper: Keeper | None,
        metrics: Metrics,
    ) -> None:
        self.config, self.metrics = config, metrics
        self._features, self._current, self._store, self._keeper = features, current, store, keeper
        self._surfaces, self._tasks = surfaces, tasks
        self._making, self._lag = threading.Lock(), Lag()
        limits, live = config.limits, config.live
        self._foundation: Lane[Ranking, Given] = Lane(
            name="foundation",
            work=self._compute,
            batch=live.batch,
            waiting=limits.waiting,
            alike=lambda ranking: id(ranking.foundation),
            behind=live.behind,
            behind_after=live.behind_after_ms / 1e3,
            quiet=self._quiet,
        )
        self._stored: Lane[Ranking, Given] = Lane(
            name="store", work=self._read, batch=limits.waiting, waiting=limits.waiting
        )
        self._experts: Lane[Ranking, Floats] = Lane(
            name="experts",
            work=self._score,
            batch=EXPERT_BATCH,
            waiting=limits.waiting,
            alike=lambda ranking: (id(ranking.bundle), ranking.question.surface, ranking.given is None),
        )
        self.lanes: dict[str, Lane[Any, Any]] = {
            "foundation": self._foundation,
            "store": self._stored,
            "experts": self._experts,
        }

    async def rank(self, question: Question, *, arrived: float) -> Answer:
        """Score a question's candidates; ``arrived`` by ``time.monotonic()``.

        Raises:
            Busy: more requests wait than may.
            NoExpert: the surface has none yet.
            TooEarly: see there.
            DataError: the question cannot be turned into what models read.
        """
        bundle = self._current()
        if question.surface not in bundle.experts:
            raise NoExpert(question.surface)
        if bundle.watermark is not None and question.time < bundle.watermark:
            raise TooEarly(f"{question.time} is before {bundle.watermark}, up to which the models in use have learned")
        ranking = Ranking(question=question, bundle=bundle)
        # A request that was asked while the event loop is behind has waited so long before it arrived here.
        deadline = arrived + self.config.live.deadline_ms / 1e3 - self._lag.seconds()
        outcome = await self._live(ranking, deadline - self._experts.expected(ranking.units))
        if ranking.given is None:
            await self._cached(ranking, deadline - self._experts.seconds(ranking.units))
        given, ranking.given = ranking.given, ranking.told()
        begun = time.monotonic()
        try:
            probability_CT = await self._experts.submit(ranking, units=ranking.units)
        except LaneFull:
            raise Busy from None
        self._took(ranking, "expert", begun)
        expert = ranking.expert
        given = given or ladder.nothing(len(question.item_ids), tasks=self._tasks)
        if self._keeper is not None and ranking.asked is not None:
            self._keeper.served(ranking.asked, given)
        self._count(given, arrived)
        return Answer(
            probability_CT=probability_CT,
            tasks=expert.tasks,
            given=given,
            bundle=ranking.bundle,
            expert=expert,
            foundation=outcome,
            milliseconds={**ranking.milliseconds, "total": round(1e3 * (time.monotonic() - arrived), 3)},
        )

    def _quiet(self) -> bool:
        """Whether nothing waits for what is computed behind."""
        return not (self._experts.working or self._stored.working) and self._lag.latest < QUIET_SECONDS

    def waiting(self, lane: str) -> float:
        """Jobs that wait in the lane of that name."""
        return float(self.lanes[lane].waiting)

    def close(self) -> None:
        """End all lanes; who waits is told."""
        for lane in self.lanes.values():
            lane.close()

    async def _live(self, ranking: Ranking, by: float) -> str:
        """Ask the foundation model, if it can answer in time; what came of it."""
        if self.config.mode != "live":
            return "off"
        outcome, begun = "absent", time.monotonic()
        if ranking.foundation is not None:
            try:
                future = self._foundation.submit(ranking, units=ranking.foundation_units, by=by)
                ranking.given = await asyncio.wait_for(future, by - begun)
                outcome = "live"
            except (TooLate, LaneFull):
                outcome = "refused"
            except TimeoutError:
                outcome = "late"
            except Exception:  # an answer never fails because the foundation model does
                outcome = "failed"
                _logger.exception("foundation model: request %d", ranking.question.request_id)
            if outcome in ("refused", "late") and not ranking.begun:
                self._put_off(ranking)
            self._took(ranking, "foundation", begun)
        self.metrics.foundation.labels(outcome).inc()
        return outcome

    def _put_off(self, ranking: Ranking) -> None:
        later = Ranking(question=ranking.question, bundle=ranking.bundle, asked=ranking.asked, behind=True)
        if self._foundation.put_off(later, units=ranking.foundation_units):
            self.metrics.behind.labels("forgotten").inc()

    async def _cached(self, ranking: Ranking, until: float) -> None:
        """Read the online store, if it answers in time."""
        if self._store is None or self.config.mode == "expert" or ranking.foundation is None:
            return
        if not ranking.finds_in(self._store.config.representation):
            return  # zeros marked as vectors would be taken for what the foundation model says
        begun = time.monotonic()
        until = max(begun + STORE_SECONDS, until)
        try:
            future = self._stored.submit(ranking, by=until)
            ranking.given = await asyncio.wait_for(future, until - begun)
        except (TooLate, LaneFull, TimeoutError, UnreachableError):
            self.metrics.store_failures.inc()
        except Exception:  # nor because the store does
            self.metrics.store_failures.inc()
            _logger.exception("online store: request %d", ranking.question.request_id)
        self._took(ranking, "store", begun)

    def _compute(self, rankings: Sequence[Ranking]) -> list[Given]:
        """The foundation model's lane."""
        for ranking in rankings:
            ranking.begun = True
        foundation = rankings[0].foundation
        assert foundation is not None
        scored = foundation.score(self._asked(rankings))
        for outcome, count in asdict(scored.reused).items():
            self.metrics.user_cache.labels(outcome).inc(count)
        ends = np.cumsum([0, *(len(ranking.question.item_ids) for ranking in rankings)]).tolist()
        given = [ladder.computed(scored, part) for part in map(slice, ends[:-1], ends[1:])]
        for ranking, each in zip(rankings, given, strict=True):
            if ranking.behind:
                self.metrics.behind.labels("computed").inc()
            if self._keeper is not None and ranking.asked is not None:
                self._keeper.computed(ranking.asked, each, foundation.snapshot)
        return given

    def _read(self, rankings: Sequence[Ranking]) -> list[Given]:
        """The online store's lane; each request as of its own time."""
        assert self._store is not None
        return [self._look_up(self._store, ranking) for ranking in rankings]

    def _look_up(self, store: OnlineStore, ranking: Ranking) -> Given:
        foundation, question = ranking.foundation, ranking.question
        assert foundation is not None
        snapshot, representation = foundation.snapshot, store.config.representation
        surface = self._surfaces.index(question.surface)
        lookup = store.get(
            pin=Pin(expert="serving", lineage=snapshot.lineage, version=snapshot.version, dims=snapshot.dims),
            surface=np.full(len(question.item_ids), surface, np.int64),
            user_id=np.full(len(question.item_ids), question.user_id, np.int64),
            item_id=question.item_ids,
            now=question.time,
            width=snapshot.dims[representation],
        )
        if representation == READS_LOGITS:
            logit_CT = foundation.logits(lookup.vector)
        else:
            logit_CT = np.zeros((len(question.item_ids), len(snapshot.tasks)), np.float32)
        return ladder.read(lookup, logit_CT, representation=representation)

    def _score(self, rankings: Sequence[Ranking]) -> list[Floats]:
        """The experts' lane: one expert, one batch."""
        expert, given = rankings[0].expert, [each.given for each in rankings if each.given is not None]
        asked = self._asked(rankings)
        teacher = None
        if given:
            foundation, name = rankings[0].foundation, expert.representation
            widths = {name: foundation.snapshot.dims[name]} if name is not None and foundation is not None else {}
            teacher = ladder.features(given, widths=widths)
        probability_CT = expert.score(asked, teacher)
        return np.split(probability_CT, np.cumsum([len(ranking.question.item_ids) for ranking in rankings])[:-1])

    def _asked(self, rankings: Sequence[Ranking]) -> Asked:
        """What models read of those questions; each is made once, so that all models read the same of it."""
        with self._making:
            new = [ranking for ranking in rankings if ranking.asked is None]
            if new:
                made = self._features.requests([ranking.question for ranking in new])
                for row, ranking in enumerate(new):
                    ranking.asked = cast(Asked, made.slice(row, row + 1)) if len(new) > 1 else made
                if len(new) == len(rankings):
                    return made
        return merge([ranking.asked for ranking in rankings if ranking.asked is not None])

    def _took(self, ranking: Ranking, stage: str, begun: float) -> None:
        seconds = time.monotonic() - begun
        ranking.milliseconds[stage] = round(1e3 * seconds, 3)
        self.metrics.stage_seconds.labels(stage).observe(seconds)

    def _count(self, given: Given, arrived: float) -> None:
        for name, count in given.rungs().items():
            if count:
                self.metrics.candidates.labels(name).inc(count)
        for name, count in given.statuses().items():
            if count:
                self.metrics.statuses.labels(name).inc(count)
        if not (given.rung_C != Rung.ZEROS).any():
            self.metrics.without.inc()
        self.metrics.seconds.observe(time.monotonic() - arrived)
