"""What a platform is: a data set, a foundation model, experts, and how to run them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from experts.steps import SurfaceLearner
from foundation.publish import REPRESENTATIONS, Publisher
from foundation.steps import FoundationLearner
from hypercast.pins import NAME
from hypercast.runtime.engine import Resources
from hypercast.runtime.ray_engine import RayEngine
from hypercast.serving.config import ServingConfig
from hypercast.store.online import OnlineStore
from hypercast.store.tae_log import TaeLog
from streaming.config import Config
from streaming.dataset import Dataset
from streaming.errors import ConfigError
from streaming.importers.complete_journey import CompleteJourney
from streaming.labels.attribution import DAY
from streaming.labels.delays import DelayCurves
from streaming.labels.policy import LabelPolicy
from streaming.prefetch import Prefetch
from streaming.sources.source import StreamConfig
from streaming.workspace import Workspace
from transfer.gain import COLD, STEADY, Span
from transfer.monitor import Monitor


def _different(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("the same seed twice; two seeds that differ show the noise floor, for example [0, 1]")
    return seeds


Seeds = Annotated[
    list[Annotated[int, pydantic.Field(ge=0)]], pydantic.Field(min_length=1), pydantic.AfterValidator(_different)
]
"""What experts are repeated with."""


class DatasetChoice(Config):
    """Attributes: ``path`` of the data set; ``complete_journey``, how to import it there if it is not there yet."""

    path: Path
    complete_journey: CompleteJourney.Config | None = None


class JobResources(Config):
    """Attributes: ``foundation``, and ``experts``, each job of them."""

    foundation: Resources = Resources()
    experts: Resources = Resources()


class PlatformConfig(Config):
    """Contents of a platform file.

    Attributes:
        name: of the MLflow experiment.
        run: folder of everything that a run writes; a rerun in the same folder resumes.
        seeds: one expert of each arm a seed; the first is also the foundation model's.
        windows: how many windows to run, from the first; None for all.
        spans: windows that reports pool, by name: first and last.
        engine: ``local`` runs jobs one after the other in this process, ``ray`` in actors side by side.
        ray: how ``engine: ray`` uses Ray (docs/scale.md).
        expert_jobs: over how many jobs the surfaces' experts are spread; all arms of a surface share one.
        expert_groups: by a name of one's own, surfaces that share one expert: it learns from the candidates of all of
            them and is judged, exported and served on each. Every other surface has an expert of its own. Example:
            ``{mailers: [mailer_front, mailer_back_wrap]}``.
        resources: what the foundation model's job, and each of the experts', is promised by a cluster.
        lookahead: how many windows the foundation model may be ahead of the slowest expert. So many it has published
            and trained on before it waits, and so much work is under way at most.
        threads: of torch in each job. Results are the same bits for the same number, under either engine.
        prefetch: how batches are built ahead of training; they are the same however that is done.
        stream: where windows come from as they are written; null: ``dataset`` holds them. With a stream, ``dataset`` is
            the catalogue: ``dataset.yaml``, items and users of the data that is to come (docs/streams.md).
        labels: by task with an attribution window, what training does until its labels are known
            (docs/delayed_labels.md); tasks that are not named wait.
        delays: how long conversions take, for ``interpolation``; ``delay_groups``: user attributes it may depend on,
            coarse to fine.
        asked_days: by surface and task, how long after a request the surface counts a conversion, if not as long as the
            task's attribution window; needs ``interpolation``. Example: ``{storefront: {redeem: 7}}``.
        learn_from: what experts predict and learn from. ``published``: the TAE log. ``served``: of candidates that a
            service has answered, what it gave (docs/serving.md); of all others, the TAE log.
        online: the store that serving reads, fed with what is published to the TAE log; ``{}`` keeps it in the run
            folder. Experts do not read it.
        serving: how requests are answered (docs/serving.md); null: as its defaults say.
    """

    name: str
    dataset: DatasetChoice
    run: Path
    seeds: Seeds = [0]
    windows: int | None = pydantic.Field(default=None, ge=1)
    spans: dict[str, tuple[int, int]] = {span.name: (span.first, span.last) for span in (COLD, STEADY)}
    engine: Literal["local", "ray"] = "local"
    ray: RayEngine.Config = RayEngine.Config()
    expert_jobs: int = pydantic.Field(default=1, ge=1)
    expert_groups: dict[str, Annotated[list[str], pydantic.Field(min_length=2)]] = {}
    resources: JobResources = JobResources()
    lookahead: int = pydantic.Field(default=2, ge=0)
    threads: int = pydantic.Field(default=1, ge=1)
    foundation: FoundationLearner.Config = FoundationLearner.Config()
    expert: SurfaceLearner.Config = SurfaceLearner.Config()
    prefetch: Prefetch.Config = Prefetch.Config()
    stream: StreamConfig | None = None
    labels: dict[str, LabelPolicy] = {}
    delays: DelayCurves.Config = DelayCurves.Config()
    delay_groups: list[str] = []
    asked_days: dict[str, dict[str, Annotated[float, pydantic.Field(gt=0)]]] = {}
    log: TaeLog.Config = TaeLog.Config()
    learn_from: Literal["published", "served"] = "published"
    online: OnlineStore.Config | None = None
    serving: ServingConfig | None = None
    monitor: Monitor.Config = Monitor.Config()

    @pydantic.model_validator(mode="after")
    def _delayed_snapshots_are_kept(self) -> "PlatformConfig":
        delay, keep = self.expert.delays[-1], self.foundation.publisher.keep
        if delay and keep < delay + 2:
            late = f"teacher_delay_windows: {self.expert.teacher_delay_windows}"
            if delay > self.expert.teacher_delay_windows:
                late += f" with label_delay_windows: {self.expert.label_delay_windows}"
            raise ValueError(
                f"expert.{late} needs snapshots that foundation.publisher.keep: {keep} has "
                f"removed by then. Give keep: {delay + 2} or more"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _waiting_experts_find_their_snapshot(self) -> "PlatformConfig":
        keep = self.foundation.publisher.keep
        if "finetune" in self.expert.arms and keep < self.lookahead + 2:
            raise ValueError(
                f"lookahead: {self.lookahead} lets the foundation model be so far ahead that the snapshot that "
                f"`finetune` starts from is removed, by foundation.publisher.keep: {keep}. Give keep: "
                f"{self.lookahead + 2} or more"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _workers_leave_no_old_snapshots(self) -> "PlatformConfig":
        if self.foundation.sharding is not None and "finetune" in self.expert.arms:
            raise ValueError(
                "foundation.sharding: its workers train on all windows before the experts begin, and the snapshot that "
                "`finetune` starts from is gone by then. Leave out the arm, or give sharding: null"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _what_is_served_can_be_learned_from(self) -> "PlatformConfig":
        serving, delay = self.serving or ServingConfig(), self.expert.delays[-1]
        problem = None
        if delay:
            problem = f"the newest snapshot answers, and an expert's delay of {delay} windows asks for an older one"
        elif serving.mode == "expert":
            problem = "with serving.mode: expert no answer has a vector"
        elif not serving.keep:
            problem = "with serving.keep: false no answer is logged"
        if self.learn_from == "served" and problem:
            raise ValueError(f"learn_from: served: {problem}. Change that, or give learn_from: published")
        return self

    @pydantic.model_validator(mode="after")
    def _a_stream_is_trained_on_once(self) -> "PlatformConfig":
        if self.stream is not None and (self.foundation.trainer.epochs > 1 or self.expert.trainer.epochs > 1):
            raise ValueError("stream: every event of a stream is trained on once. Give trainer: {epochs: 1}")
        if self.stream is not None and self.expert.replay.windows:
            raise ValueError("stream: every event of a stream is trained on once. Give expert: {replay: {windows: 0}}")
        return self

    @pydantic.model_validator(mode="after")
    def _groups_are_apart(self) -> "PlatformConfig":
        grouped = [surface for group in self.expert_groups.values() for surface in group]
        if twice := sorted({surface for surface in grouped if grouped.count(surface) > 1}):
            raise ValueError(f"expert_groups: {twice} are named twice, and a surface has one expert. Name them once")
        if self.expert_groups and self.stream is not None:
            raise ValueError(
                "expert_groups: what each trainer of a stream was given is checked surface by surface. Leave them out"
            )
        for name in self.expert_groups:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"expert_groups: {name!r} names a folder: allowed is a letter followed by at most 63 letters, "
                    "digits, '_' or '-'. Example: mailers"
                )
        return self

    def experts_of(self, surfaces: Sequence[str]) -> dict[str, list[str]]:
        """Which surfaces each expert is of, by its name, which is its surface's or its group's.

        Args:
            surfaces: of the data set.

        Raises:
            ConfigError: a group has a surface's name, or a surface that the data set has not.
        """
        allowed = f"The data set has {', '.join(surfaces)}"
        for name, group in self.expert_groups.items():
            if name in surfaces:
                raise ConfigError(f"expert_groups: {name!r} is a surface. Give the group a name of its own.")
            if unknown := sorted(set(group) - set(surfaces)):
                raise ConfigError(f"expert_groups.{name}: there is no surface {', '.join(unknown)}. {allowed}.")
        of_surface = {surface: name for name, group in self.expert_groups.items() for surface in group}
        experts: dict[str, list[str]] = {}
        for surface in surfaces:
            experts.setdefault(of_surface.get(surface, surface), []).append(surface)
        return experts

    def workspace(self, dataset: Dataset) -> Workspace:
        """``dataset``, learned and read as ``labels`` says."""
        return Workspace(dataset, **self.workspace_settings())

    def workspace_settings(self) -> dict[str, Any]:
        """What a workspace is told about labels, and about building batches."""
        labels = {"labels": self.labels, "delays": self.delays, "delay_groups": tuple(self.delay_groups)}
        asked = {
            surface: {task: round(days * DAY) for task, days in tasks.items()}
            for surface, tasks in self.asked_days.items()
        }
        return {**labels, "asked_windows": asked, "prefetch": self.prefetch}

    def publisher(self) -> Publisher.Config:
        """What is published: what the file asks for, and what its experts' arms read beside it."""
        wanted = {*self.foundation.publisher.representations, *self.expert.representations()}
        return self.foundation.publisher.model_copy(
            update={"representations": [name for name in REPRESENTATIONS if name in wanted]}
        )

    def report_spans(self) -> list[Span]:
        """The spans as the report takes them."""
        return [Span(name, first, last) for name, (first, last) in self.spans.items()]
