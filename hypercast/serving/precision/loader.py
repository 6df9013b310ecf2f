"""Bundles that answer by compact models: each is made compact whole, beside the one that answers, before it is used.

Kernels are chosen by requests that the models have learned from, the last ones before a snapshot's watermark or the end
of an expert's last window: none that they are to answer is among them, and no label is read. An expert is given what
the *compact* foundation model says of them, and held against what the float32 expert says where it reads the float32
foundation model: the bound is on answers, whichever of the two has lost what.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

from experts.fusion import TeacherFeatures
from hypercast.serving.config import ServedPrecision
from hypercast.serving.features.asked import Asked
from hypercast.serving.metrics import Metrics
from hypercast.serving.models.bundle import Bundle
from hypercast.serving.models.expert import ExpertScorer
from hypercast.serving.models.foundation import FoundationScorer
from hypercast.serving.models.swap import Loader
from hypercast.serving.precision.cost import divergence
from hypercast.serving.precision.sample import as_asked, recent_requests
from hypercast.serving.precision.watch import Event
from hypercast.serving.precision.watching import Watching
from streaming.errors import DataError
from streaming.workspace import Workspace

_logger = logging.getLogger(__name__)

SUFFIX = "-compact"
"""Of the versions of bundles that a compacting loader gives."""
ScorerT = TypeVar("ScorerT", FoundationScorer, ExpertScorer)


class CompactLoader:
    """Loads what another loader does, with compact models in the place of those that can be made so within bounds.

    What cannot answers in float32: that is said once, counted, and told among the bundle's versions. For one thread at
    a time.

    Args:
        loader: of bundles in float32. They stay as they are, so it may give the same models again.
        config: bounds.
        workspace: the data set.
        batch: requests that are scored at once.
        live: whether the foundation model answers while requests wait; where not, it stays as it is.
        metrics: of the service.
    """

    def __init__(
        self,
        *,
        loader: Loader,
        config: ServedPrecision,
        workspace: Workspace,
        batch: int,
        live: bool,
        metrics: Metrics,
    ) -> None:
        self._loader, self._config, self._workspace = loader, config, workspace
        self._batch, self._live, self._metrics = batch, live, metrics
        self._complaints: set[str] = set()

    def newest(self) -> str:
        """As the other loader's, with :data:`SUFFIX`."""
        return self._loader.newest() + SUFFIX

    def load(self) -> Bundle:
        """The newest set, made compact, all of it anew.

        Which kernels are the fastest is measured, so the same models may get others the next time. The version names
        the models and that they are compact; ``versions["precision"]`` tells by model how.

        Raises:
            UserError: as the other loader.
        """
        bundle, begun = self._loader.load(), time.monotonic()
        said: dict[str, dict[str, Any]] = {}
        sample = _Sampler(workspace=self._workspace, requests=self._config.requests, batch=self._batch)
        serving = {each: self._foundation(each, sample, said) for each in _foundations(bundle)}
        rehearsals = []
        for expert, foundation in _experts(bundle):
            try:
                asked = sample.before(expert.as_of, surface=expert.index)
                rehearsals.append(_Rehearsal(expert=expert, foundation=foundation, asked=asked))
            except DataError as error:
                self._settle(said, _name(expert), _name(expert), "no_sample", str(error))
        for each in rehearsals:
            self._refuse(each, serving, said)
        experts = {each.expert: self._expert(each, serving, said) for each in rehearsals}
        version = bundle.version + SUFFIX
        _logger.info("%s: %s, chosen in %.1f s", version, said, time.monotonic() - begun)
        return replace(
            bundle,
            version=version,
            foundation=serving[bundle.foundation] if bundle.foundation is not None else None,
            pinned={surface: serving[scorer] for surface, scorer in bundle.pinned.items()},
            experts={surface: experts.get(scorer, scorer) for surface, scorer in bundle.experts.items()},
            fallback={surface: experts.get(scorer, scorer) for surface, scorer in bundle.fallback.items()},
            versions={**bundle.versions, "bundle": version, "precision": said},
        )

    def _foundation(
        self, scorer: FoundationScorer, sample: "_Sampler", said: dict[str, dict[str, Any]]
    ) -> FoundationScorer:
        snapshot = scorer.snapshot
        if not self._live:
            return scorer

        def compacted() -> FoundationScorer:
            return scorer.compacted(
                sample.before(snapshot.watermark),
                precision=self._config,
                watching=self._watching(snapshot.name, snapshot.lineage),
            )

        return self._made(scorer, compacted, snapshot.name, snapshot.lineage, said)

    def _refuse(
        self,
        rehearsal: "_Rehearsal",
        serving: dict[FoundationScorer, FoundationScorer],
        said: dict[str, dict[str, Any]],
    ) -> None:
        """Let the foundation model answer in float32 where its loss alone takes the expert's answers out of bounds."""
        plain = rehearsal.foundation
        if plain is None or serving[plain] is plain:
            return
        expert, bound = rehearsal.expert, self._config.ne_cost_pct
        told = rehearsal.told(serving[plain])
        cost = divergence(rehearsal.reference, expert.rehearse(rehearsal.asked, told)).ne_cost_pct
        if not cost <= bound:  # nan is out of bounds, too
            serving[plain] = plain
            why = f"its vectors alone would cost {_name(expert)} {cost:.4f} % of NE, more than the bound of {bound:g} %"
            self._settle(said, plain.snapshot.name, plain.snapshot.lineage, "refused", why)

    def _expert(
        self,
        rehearsal: "_Rehearsal",
        serving: dict[FoundationScorer, FoundationScorer],
        said: dict[str, dict[str, Any]],
    ) -> ExpertScorer:
        plain, name = rehearsal.foundation, _name(rehearsal.expert)

        def compacted() -> ExpertScorer:
            return rehearsal.expert.compacted(
                rehearsal.asked,
                rehearsal.told(serving[plain] if plain is not None else None),
                reference=rehearsal.reference,
                precision=self._config,
                watching=self._watching(name, name),
            )

        return self._made(rehearsal.expert, compacted, name, name, said)

    def _made(
        self,
        plain: ScorerT,
        compacted: Callable[[], ScorerT],
        name: str,
        label: str,
        said: dict[str, dict[str, Any]],
    ) -> ScorerT:
        """What ``compacted`` gives, or else ``plain``; ``label``: for metrics."""
        try:
            made = compacted()
        except DataError as error:
            self._settle(said, name, label, "no_sample", str(error))
            return plain
        except RuntimeError as error:  # of torch: a kernel that this machine cannot compute with after all
            self._settle(said, name, label, "failed", str(error))
            return plain
        report = made.report
        if report is None:
            self._settle(said, name, label, "unchanged", "no other kernel or table was better within the bounds")
            return plain
        self._metrics.loaded.labels(label, "compact").inc()
        said[name] = {
            "kernels": {layer.name: layer.kernel for layer in report.layers if layer.kernel != "float32"},
            "ne_cost_pct": report.ne_cost_pct,
            "table_ratio": report.table_ratio,
            "candidates": report.candidates,
        }
        return made

    def _settle(self, said: dict[str, dict[str, Any]], name: str, label: str, outcome: str, why: str) -> None:
        """Count that a model stays in float32, and say why, once."""
        self._metrics.loaded.labels(label, outcome).inc()
        said[name] = {"kernels": {}, "why": why}
        complaint = f"{name} answers in float32: {why}"
        if complaint not in self._complaints:
            self._complaints.add(complaint)
            _logger.warning("%s", complaint)

    def _watching(self, name: str, label: str) -> Watching:
        metrics = self._metrics

        def hear(event: Event, cost: float) -> None:
            if event == "watched":
                metrics.watched.labels(label).inc()
                metrics.ne_cost.labels(label).set(cost)
            elif event == "strayed":
                metrics.strayed.labels(label).inc()
            else:
                metrics.answered.labels(label, event).inc()

        def layers(errors: Mapping[str, float]) -> None:
            for layer, error in errors.items():
                metrics.layer_error.labels(label, layer).set(error)

        return Watching(
            name=f"compact {name}",
            config=self._config.watch,
            statistics=self._config.statistics,
            listener=hear,
            layers=layers,
        )


class _Sampler:
    """Requests to choose kernels by, in batches; a window is read once for all who ask."""

    def __init__(self, *, workspace: Workspace, requests: int, batch: int) -> None:
        self._workspace, self._most, self._batch = workspace, requests, batch
        self._read = cache(workspace.requests)

    def before(self, time: int, *, surface: int | None = None) -> list[Asked]:
        """The last ones before ``time``, microseconds.

        Raises:
            DataError: there is none.
        """
        recent = recent_requests(self._workspace, before=time, most=self._most, surface=surface, read=self._read)
        return [
            as_asked(self._workspace, recent.slice(first, first + self._batch))
            for first in range(0, len(recent), self._batch)
        ]


class _Rehearsal:
    """An expert, requests that it has learned from, and what it says of them in float32.

    Attributes: ``expert``; ``foundation``, whose vectors it reads, None where it reads nothing; ``asked``;
    ``reference``, its logits ``[C, H]`` where both are in float32.
    """

    def __init__(self, *, expert: ExpertScorer, foundation: FoundationScorer | None, asked: list[Asked]) -> None:
        self.expert, self.foundation, self.asked = expert, foundation, asked
        self.told: Callable[[FoundationScorer | None], list[TeacherFeatures | None]] = cache(self._told)
        self.reference = expert.rehearse(asked, self.told(foundation))

    def _told(self, foundation: FoundationScorer | None) -> list[TeacherFeatures | None]:
        """What ``foundation`` says, part by part."""
        return [None if foundation is None else foundation.rehearse(part) for part in self.asked]


def _foundations(bundle: Bundle) -> list[FoundationScorer]:
    """Each once."""
    found = [bundle.foundation, *bundle.pinned.values()]
    return list(dict.fromkeys(each for each in found if each is not None))


def _experts(bundle: Bundle) -> Iterator[tuple[ExpertScorer, FoundationScorer | None]]:
    """Each once, with what it reads."""
    for surface, expert in bundle.experts.items():
        for each in dict.fromkeys([expert, bundle.fallback.get(surface, expert)]):
            reads = each.representation is not None or each.reads_logits
            yield each, bundle.foundation_of(surface) if reads else None


def _name(expert: ExpertScorer) -> str:
    return f"{expert.surface}/{expert.arm}"
