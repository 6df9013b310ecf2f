"""A service, put together: models, feature state, online store, journal, and what turns bodies into answers."""

import contextlib
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from hypercast.errors import StoreError
from hypercast.serving.config import Mode, ServingConfig
from hypercast.serving.features.follower import Tail
from hypercast.serving.features.question import Question
from hypercast.serving.features.state import FeatureState
from hypercast.serving.http.parsing import Parser
from hypercast.serving.lanes.ranker import Ranker
from hypercast.serving.lanes.ranking import finds_what_it_reads
from hypercast.serving.logs.intake import Intake, Journal
from hypercast.serving.logs.keeper import Log, VectorKeeper
from hypercast.serving.metrics import Metrics
from hypercast.serving.models.bundle import Bundle
from hypercast.serving.models.expert import ExpertScorer
from hypercast.serving.models.foundation import FoundationScorer
from hypercast.serving.models.swap import Loader, Swap
from hypercast.serving.precision.loader import CompactLoader
from hypercast.store.engine import UnreachableError
from hypercast.store.online import OnlineStore
from streaming.workspace import Workspace

_logger = logging.getLogger(__name__)

JOURNAL_SECONDS = 0.1
"""Between two looks for engagements that other processes have taken in."""
SWITCH_SECONDS = 0.00005
"""After which a thread lets another run. The event loop lets go of the interpreter at every system call and then waits
so long for it, while others compute: with the default of 5 ms a busy service answers seconds late.
"""
WARM_ITEMS = 100
"""Candidates of the questions that new models are warmed with."""


class Service:
    """All that serves from one process. Built from its parts; :func:`hypercast.serving.deploy.open_service` opens them.

    Args:
        config: of the service.
        workspace: the data set.
        state: what is known of users and items.
        loader: opens bundles.
        store: the online store; None for none.
        log: of what is served; None for none.
        journal: where engagements are written.
        tail: of the stream that the state follows; None for none.
    """

    def __init__(
        self,
        *,
        config: ServingConfig,
        workspace: Workspace,
        state: FeatureState,
        loader: Loader,
        store: OnlineStore | None,
        log: Log | None,
        journal: Path,
        tail: Tail | None = None,
    ) -> None:
        torch.set_num_threads(config.threads)
        sys.setswitchinterval(SWITCH_SECONDS)
        self.config, self.metrics, self.state = config, Metrics(), state
        self._workspace, self._store = workspace, store
        self.parser = Parser(dataset=workspace.dataset.config, given=state.given, config=config)
        if config.precision is not None:
            loader = CompactLoader(
                loader=loader,
                config=config.precision,
                workspace=workspace,
                batch=config.live.batch,
                live=config.mode == "live",
                metrics=self.metrics,
            )
        self._warmed: WeakSet[ExpertScorer | FoundationScorer] = WeakSet()
        with contextlib.ExitStack() as opened:  # what is open ends in the end, and if something else cannot be opened
            if store is not None:
                opened.callback(store.close)
            self.swap = Swap(loader=loader, warm=self._warm, every=config.refresh_seconds, metrics=self.metrics)
            opened.callback(self.swap.close)
            self.intake = Intake(
                journal=Journal(journal), state=state, since=state.as_of, every=JOURNAL_SECONDS, metrics=self.metrics
            )
            opened.callback(self.intake.close)
            self.follower = None if tail is None else tail.follow(state=state, metrics=self.metrics)
            if self.follower is not None:
                opened.callback(self.follower.close)
            keeper = None
            if config.keep and (store is not None or log is not None):
                keeper = VectorKeeper(store=store, log=log, commit_seconds=config.commit_seconds, metrics=self.metrics)
                opened.callback(keeper.close)
            self.ranker = Ranker(
                config=config,
                features=state,
                surfaces=workspace.dataset.config.surfaces,
                tasks=len(workspace.inputs.tasks),
                current=lambda: self.swap.current,
                store=store,
                keeper=keeper,
                metrics=self.metrics,
            )
            opened.callback(self.ranker.close)
            self._closing = opened.pop_all()
        self.metrics.user_cache_bytes.set_function(lambda: self.swap.current.kept_bytes)
        for name in self.ranker.lanes:
            self.metrics.waiting.labels(name).set_function(partial(self.ranker.waiting, name))

    def models(self) -> dict[str, Any]:
        """What answers now, for ``/v1/models``."""
        bundle = self.swap.current
        return {
            "version": bundle.version,
            "watermark": bundle.watermark,
            "mode": self.config.mode,
            "surfaces": self._workspace.dataset.config.surfaces,
            "tasks": {name: expert.tasks for name, expert in bundle.experts.items()},
            "given": self.state.given,
            **bundle.versions,
        }

    @property
    def ready(self) -> bool:
        """Whether what the followed stream held at the start is known; True where none is followed."""
        return self.follower is None or self.follower.caught_up

    def health(self) -> dict[str, Any]:
        """How the service is, for ``/healthz``."""
        followed = {} if self.follower is None else {"stream": self.follower.describe()}
        return {"status": "ok" if self.ready else "catching up", "version": self.swap.current.version, **followed}

    def close(self) -> None:
        """End all threads, keep what is to be kept; all of them, whatever one of them raises."""
        self._closing.close()

    def _warm(self, bundle: Bundle) -> None:
        """Score a question of each surface by all that is new: first calls are many times slower.

        What is not new is left alone: it is in use, each in a thread of its own.

        Raises:
            StoreError: an expert cannot read the online store, or other weights than the snapshot's have written there.
        """
        ids = self._workspace.items.ids[:WARM_ITEMS]
        for surface, expert in bundle.experts.items():
            foundation = bundle.foundation_of(surface)
            if self._store is not None and foundation is not None:
                check_readable(expert, store=self._store, mode=self.config.mode)
                with contextlib.suppress(UnreachableError):  # a rung that is not there now
                    self._store.check_model(foundation.snapshot)
            question = Question(
                request_id=0,
                surface=surface,
                user_id=0,
                time=max(bundle.watermark or 0, self.state.earliest),  # moves on while others ask
                context=dict.fromkeys(self._workspace.dataset.config.context),
                item_ids=ids,
                dense={name: np.zeros(len(ids), np.float32) for name in self.state.given},
            )
            asked = self.state.requests([question])
            for scorer in (expert, bundle.fallback.get(surface), foundation):
                if scorer is not None and scorer not in self._warmed:
                    scorer.score(asked)
                    self._warmed.add(scorer)


def check_readable(expert: ExpertScorer, *, store: OnlineStore, mode: Mode) -> None:
    """Refuse an expert that reads what the online store does not keep, where it has nothing else to read.

    Raises:
        StoreError: the expert reads another representation, or logits, which are read from ``penultimate`` vectors.
    """
    kept = store.config.representation
    if mode == "cached" and not finds_what_it_reads(expert, kept=kept):
        raise StoreError(
            f"serving: expert {expert.arm!r} of {expert.surface!r} reads {expert.representation or 'logits'!r}, which "
            f"the online store, of {kept!r}, has not. Give online: {{representation: ...}}, serving: {{mode: live}} or "
            "another serving: {arm: ...}."
        )
