"""What a platform is: a data set, a foundation model, experts, and how to run them."""

from pathlib import Path
from typing import Any, Literal

import pydantic

from experts.steps import SurfaceLearner
from foundation.publish import REPRESENTATIONS, Publisher
from foundation.steps import FoundationLearner
from hypercast.store.online import OnlineStore
from hypercast.store.tae_log import TaeLog
from streaming.config import Config
from streaming.dataset import Dataset
from streaming.importers.complete_journey import CompleteJourney
from streaming.labels.delays import DelayCurves
from streaming.labels.policy import FakeNegative, LabelPolicy
from streaming.prefetch import Prefetch
from streaming.sources.source import StreamConfig
from streaming.workspace import Workspace
from transfer.gain import COLD, STEADY, Span
from transfer.monitor import Monitor


class DatasetChoice(Config):
    """Attributes: ``path`` of the data set; ``complete_journey``, how to import it there if it is not there yet."""

    path: Path
    complete_journey: CompleteJourney.Config | None = None


class PlatformConfig(Config):
    """Contents of a platform file.

    Attributes:
        name: of the MLflow experiment.
        run: folder of everything that a run writes; a rerun in the same folder resumes.
        seeds: one expert of each arm a seed; the first is also the foundation model's.
        windows: how many windows to run, from the first; None for all.
        spans: windows that reports pool, by name: first and last.
        engine: ``local`` runs jobs one after the other in this process, ``ray`` in actors side by side.
        expert_jobs: over how many jobs the surfaces' experts are spread.
        threads: of torch in each job. Results are the same bits for the same number, under either engine.
        prefetch: how batches are built ahead of training; they are the same however that is done.
        stream: where windows come from as they are written; null: ``dataset`` holds them. With a stream, ``dataset`` is
            the catalogue: ``dataset.yaml``, items and users of the data that is to come (docs/streams.md).
        labels: by task with an attribution window, what training does until its labels are known
            (docs/delayed_labels.md); tasks that are not named wait.
        delays: how long conversions take, for ``interpolation``; ``delay_groups``: user attributes it may depend on,
            coarse to fine.
        online: the store that serving reads, fed with what is published to the TAE log; ``{}`` keeps it in the run
            folder. Experts do not read it.
    """

    name: str
    dataset: DatasetChoice
    run: Path
    seeds: list[int] = pydantic.Field(default=[0], min_length=1)
    windows: int | None = pydantic.Field(default=None, ge=1)
    spans: dict[str, tuple[int, int]] = {span.name: (span.first, span.last) for span in (COLD, STEADY)}
    engine: Literal["local", "ray"] = "local"
    expert_jobs: int = pydantic.Field(default=1, ge=1)
    threads: int = pydantic.Field(default=1, ge=1)
    foundation: FoundationLearner.Config = FoundationLearner.Config()
    expert: SurfaceLearner.Config = SurfaceLearner.Config()
    prefetch: Prefetch.Config = Prefetch.Config()
    stream: StreamConfig | None = None
    labels: dict[str, LabelPolicy] = {}
    delays: DelayCurves.Config = DelayCurves.Config()
    delay_groups: list[str] = []
    log: TaeLog.Config = TaeLog.Config()
    online: OnlineStore.Config | None = None
    monitor: Monitor.Config = Monitor.Config()

    @pydantic.model_validator(mode="after")
    def _delayed_snapshots_are_kept(self) -> "PlatformConfig":
        delay, keep = self.expert.teacher_delay_windows, self.foundation.publisher.keep
        if delay and keep < delay + 2:
            raise ValueError(
                f"expert.teacher_delay_windows: {delay} needs snapshots that foundation.publisher.keep: {keep} has "
                f"removed by then. Give keep: {delay + 2} or more"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _a_stream_is_trained_on_once(self) -> "PlatformConfig":
        if self.stream is not None and (self.foundation.trainer.epochs > 1 or self.expert.trainer.epochs > 1):
            raise ValueError("stream: every event of a stream is trained on once. Give trainer: {epochs: 1}")
        return self

    @pydantic.model_validator(mode="after")
    def _fake_negatives_are_no_labels(self) -> "PlatformConfig":
        assumes = any(isinstance(policy, FakeNegative) for policy in self.labels.values())
        misled = [arm for arm in self.expert.arms if arm == "kd" or "adapter" in arm or "c2al" in arm]
        if assumes and (self.expert.model.calibration is not None or misled):
            raise ValueError(
                "labels: of fake_negative, half of what is learned is no outcome, and calibration, kd, adapters and "
                f"cohorts cannot tell. Give expert.model.calibration: null and leave out {misled or 'no arm'}, or use "
                "interpolation"
            )
        return self

    def workspace(self, dataset: Dataset) -> Workspace:
        """``dataset``, learned and read as ``labels`` says."""
        return Workspace(dataset, **self.workspace_settings())

    def workspace_settings(self) -> dict[str, Any]:
        """What a workspace is told about labels, and about building batches."""
        labels = {"labels": self.labels, "delays": self.delays, "delay_groups": tuple(self.delay_groups)}
        return {**labels, "prefetch": self.prefetch}

    def publisher(self) -> Publisher.Config:
        """What is published: what the file asks for, and what its experts' arms read beside it."""
        wanted = {*self.foundation.publisher.representations, *self.expert.representations()}
        return self.foundation.publisher.model_copy(
            update={"representations": [name for name in REPRESENTATIONS if name in wanted]}
        )

    def report_spans(self) -> list[Span]:
        """The spans as the report takes them."""
        return [Span(name, first, last) for name, (first, last) in self.spans.items()]
