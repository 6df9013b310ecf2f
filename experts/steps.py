"""What the train loop calls to train all arms of an expert side by side, on the same batches."""

import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from torch import Tensor

from experts.arms import ArmsConfig
from experts.batch import ExpertBatch
from experts.export import export_expert, export_rates
from experts.finetune import Start
from experts.fusion import TeacherFeatures
from experts.lessons import Lessons, Taught
from experts.member import Member
from experts.model import TOWER_INPUT, ExpertModel
from experts.past import PastEmbeddings
from experts.predicted import Predicted
from experts.surface_cohorts import SurfaceCohorts, joined
from experts.teacher import TeacherLabels, TeacherReader
from foundation.hstu.optimiser import ModelOptimiser
from foundation.hstu.tower import TowerShape
from foundation.hstu.vocabulary import BatchVocabulary
from hypercast.pins import Pin
from hypercast.registry import Registry
from hypercast.store.tae_log import TaeLog
from hypercast.training.flops import flops_per_candidate
from hypercast.training.loop import ContinualTrainer
from hypercast.training.replay import Replay
from streaming.dataset import Window
from streaming.errors import ConfigError
from streaming.files import write_directory
from streaming.labels.rate_columns import LabelRateColumns
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer.health import by_surface

EVER = np.iinfo(np.int64).min
"""Microseconds: before every time."""


class SurfaceLearner:
    """All arms and seeds of one surface's expert, or of one that several surfaces share.

    Arms share data order and, parameter by parameter, initial values. An expert that is shared learns from every
    candidate of its surfaces and is judged on each surface by itself.
    """

    class Config(ArmsConfig):
        """Beside what the arms are (:class:`experts.arms.ArmsConfig`), how they learn. Attributes:

        batch_size: requests of the expert's surfaces in a training step.
        replay: which earlier windows every arm trains on again beside each new one; every step of the new one then has
            an equal share of each of them.
        label_rates: what label rates every arm reads beside the dense features; None for none.
        vocabulary: sizes of the embedding tables; all arms share it, as they share their batches.
        past: of ``tae_history``.
        teacher_delay_windows: how much older than it need be what the teacher says is, vectors and labels alike; see
            :class:`experts.teacher.TeacherReader`.
        label_delay_windows: how much older than that the labels are that arms distil from; what they read stays.
        optimiser: of arms that start from nothing.
        residual_optimiser: of arms that start from the teacher's logit, and so have less to learn.
        """

        batch_size: int = pydantic.Field(default=48, ge=1)
        replay: Replay.Config = Replay.Config()
        label_rates: LabelRateColumns.Config | None = None
        vocabulary: BatchVocabulary.Config = BatchVocabulary.Config()
        past: PastEmbeddings.Config = PastEmbeddings.Config()
        teacher_delay_windows: int = pydantic.Field(default=0, ge=0)
        label_delay_windows: int = pydantic.Field(default=0, ge=0)
        optimiser: ModelOptimiser.Config = ModelOptimiser.Config(learning_rate=1e-2)
        residual_optimiser: ModelOptimiser.Config = ModelOptimiser.Config(learning_rate=2e-4, table_learning_rate=3e-3)
        trainer: ContinualTrainer.Config = ContinualTrainer.Config()

        @property
        def delays(self) -> tuple[int, ...]:
            """By how many windows what arms read is late, fewest first: vectors, then labels if they are later."""
            late = self.label_delay_windows if self.distils() else 0
            return tuple(sorted({self.teacher_delay_windows, self.teacher_delay_windows + late}))

    def __init__(
        self,
        *,
        config: Config,
        surfaces: Sequence[str],
        workspace: Workspace,
        log: TaeLog,
        pin: Pin,
        embedding: int,
        seeds: list[int],
        run: Path,
        encoding: int | None = None,
        tower: TowerShape | None = None,
        registry: Registry | None = None,
    ) -> None:
        """``surfaces``: names, at least one; ``embedding``: width of the teacher's ``penultimate``; ``encoding``: of
        its ``sequence`` and ``user``, which no arm can read without it; ``tower`` and ``registry``: shape of its tower
        and where its snapshots are, without which no arm can start from them.
        """
        self.config = config
        workspace = workspace.with_label_rates(config.label_rates)
        self.surfaces = {surface: workspace.inputs.surfaces.index(surface) for surface in surfaces}
        self.workspace = workspace
        self.log = log
        self.pin = pin
        self.run = run
        self.seeds = seeds
        indices, everything = tuple(self.surfaces.values()), workspace.engagements
        shared = len(indices) > 1
        histories = {
            "surface": (everything if shared else everything.only(*indices), config.model.history),
            "all": (everything, config.cross_history),
        }
        self.reader = workspace.reader(histories)
        self.vocabulary = config.vocabulary.build(workspace.inputs)
        self.widths = {"penultimate": embedding, "past": embedding}
        if encoding is not None:
            self.widths |= {"sequence": encoding, "user": encoding}
        if tower is not None and registry is not None:
            self.widths[TOWER_INPUT] = tower.inputs
        self.registry = registry
        arms = config.of_several(shared).models(
            inputs=workspace.inputs, widths=self.widths, tower=tower if registry is not None else None
        )
        if unknown := set(config.representations()) - self.widths.keys():
            raise ConfigError(
                f"arms {config.arms} read {sorted(unknown)}, whose width is not known. Give the foundation model's: "
                "SurfaceLearner(encoding=foundation.model.width)."
            )
        self.teacher = TeacherReader(
            log=log,
            pin=pin,
            workspace=workspace,
            widths={name: self.widths[name] for name in config.representations()},
            past=config.past,
            delay=config.teacher_delay_windows,
            label_delay=config.delays[-1],
        )
        self.replay = config.replay.build(seed=seeds[0], name="+".join(surfaces))
        self.lessons = Lessons(
            workspace=workspace, surfaces=indices, teacher=self.teacher, replay=self.replay, size=config.batch_size
        )
        self.cohorts = None
        if any(arm.cohorts is not None for arm in arms.values()):
            self.cohorts = SurfaceCohorts(config=config.cohorts, workspace=workspace, surfaces=indices)
        self.members = {
            (arm, seed): self._member(arm_config, seed) for seed in seeds for arm, arm_config in arms.items()
        }

    @torch.inference_mode()
    def evaluate(self, window: Window) -> Mapping[str, float]:
        """Predict the window with every arm and write the predictions; returns coverage and age, of each surface, and
        collision rates.

        Earlier requests whose labels become known in the window are predicted again, for calibration alone.
        """
        self.vocabulary.eval()
        for member in self.members.values():
            member.start()
        if self.registry is not None and window.index >= self.config.finetune_window:
            start = Start(registry=self.registry, pin=self.pin, dataset=self.workspace.dataset)
            start.give(self.members.values(), window, delay=self.config.teacher_delay_windows)
        requests = self.workspace.requests(window.index).on_surface(*self.surfaces.values())
        taught = self.workspace.taught(requests, window)
        told = self.teacher.read(window.index, requests)
        said: dict[tuple[str, int], list[Tensor]] = {member: [] for member in self.members}
        in_cohorts: list[dict[str, Tensor]] = []
        since, before, size = window.start, window.end, 4 * self.config.batch_size
        with self._averaged():
            parts = self._untaught(taught, told.features).slices(size)
            for batch in self._batches(parts, since=since, before=before):
                for key, member in self.members.items():
                    said[key].append(member.predict(*batch.read_by(member.model)))
                if self.cohorts is not None:
                    in_cohorts.append(self.cohorts.members(batch.requests))
            self._predict_late(window)
        predicted = Predicted(
            requests=requests, said=said, teacher_CH=told.features.logit_CT.sigmoid(), cohorts=joined(in_cohorts)
        )
        predicted.write(self.run, workspace=self.workspace, window=window, surfaces=self.surfaces)
        noted = {surface: told.noted(requests.surface == index) for surface, index in self.surfaces.items()}
        return by_surface(noted) | self.vocabulary.collision_rates(self.reader, requests)

    def batches(self, window: Window) -> Iterator[ExpertBatch]:
        """The expert's requests whose labels became known in the window, in time order, and what is replayed."""
        self.vocabulary.train()
        for batch in self._batches(self.lessons.of(window), since=EVER, before=window.end):
            cohorts = self.cohorts.labels(batch.requests, window.index) if self.cohorts is not None else None
            yield replace(batch, cohorts=cohorts)

    def step(self, batch: ExpertBatch) -> Mapping[str, float]:
        return {
            f"{arm}.seed{seed}/train_loss": member.step(
                *batch.read_by(member.model), batch.lesson, batch.cohorts
            ).item()
            for (arm, seed), member in self.members.items()
        }

    def finish(self, window: Window) -> Mapping[str, float]:
        for member in self.members.values():
            member.finish()
        self.replay.finish(window.index)
        if self.cohorts is not None:
            self.cohorts.finish(window, size=4 * self.config.batch_size)
        return self.vocabulary.statistics()

    def flops(self, window: Window) -> dict[str, float]:
        """Floating-point operations of every arm for one candidate, on the window's first batch; empty without one."""
        self.vocabulary.eval()
        requests = self.workspace.requests(window.index).on_surface(*self.surfaces.values())
        features = self.teacher.read(window.index, requests).features
        parts = self._untaught(requests, features).slices(self.config.batch_size)
        batch = next(self._batches(parts), None)
        if batch is None:
            return {}
        return {
            arm: flops_per_candidate(
                partial(member.model.eval(), *batch.read_by(member.model)),
                candidates=len(batch.requests.item_C),
            )
            for (arm, _), member in self.members.items()
        }

    def export(self, folder: Path) -> None:
        """Write the first seed's experts to ``folder/ARM``, all at once, see :mod:`experts.export`; nothing if they are
        there. What holds a part of them was cut short, and is made anew.
        """
        first = {arm: member for (arm, seed), member in self.members.items() if seed == self.seeds[0]}
        if all((folder / arm).is_dir() for arm in first):
            return
        if folder.exists():
            shutil.rmtree(folder)

        def write(partial: Path) -> None:
            learned = max(self.replay.trained, default=self.workspace.dataset.windows[0].index - 1)
            rates = export_rates(partial, self.workspace, before=learned + 1)
            for arm, member in first.items():
                with member.optimiser.averaged():
                    export_expert(partial / arm, model=member.model, vocabulary=self.vocabulary, rates=rates)

        write_directory(folder, write)

    def state_dict(self) -> dict[str, Any]:
        members = {f"{arm}.seed{seed}": member.state_dict() for (arm, seed), member in self.members.items()}
        state = {"vocabulary": self.vocabulary.state_dict(), "members": members, "trained": list(self.replay.trained)}
        return state | ({"cohorts": self.cohorts.state_dict()} if self.cohorts is not None else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.vocabulary.load_state_dict(state["vocabulary"])
        self.replay.trained = list(state["trained"])
        for (arm, seed), member in self.members.items():
            member.load_state_dict(state["members"][f"{arm}.seed{seed}"])
        if self.cohorts is not None:
            self.cohorts.load_state_dict(state["cohorts"])

    def _predict_late(self, window: Window) -> None:
        """Let members that calibrate say what they make of requests whose labels became known after their window."""
        calibrated = [member for member in self.members.values() if member.model.calibration is not None]
        for made, learned in self.workspace.became_known_in(window) if calibrated else ():
            if made == window.index:
                continue
            requests = learned.on_surface(*self.surfaces.values())
            features = self.teacher.read(made, requests).features
            size = 4 * self.config.batch_size
            parts = self._untaught(requests, features).slices(size)
            for batch in self._batches(parts, since=window.start, before=window.end):
                for member in calibrated:
                    member.predict(*batch.read_by(member.model))

    def _member(self, config: ExpertModel.Config, seed: int) -> Member:
        model = config.build(
            inputs=self.workspace.inputs,
            vocabulary=self.vocabulary,
            embedding=self.widths[config.representation],
            seed=seed,
        )
        optimiser = self.config.residual_optimiser if config.logit_residual else self.config.optimiser
        return Member(model=model, optimiser=optimiser, seed=seed)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, every member has the weights that it predicts with."""
        with ExitStack() as averages:
            for member in self.members.values():
                averages.enter_context(member.optimiser.averaged())
            yield

    def _batches(self, parts: Iterable[Taught], *, since: int = 0, before: int = 0) -> Iterator[ExpertBatch]:
        """A batch of each part; labels are marked as known where they became known in ``[since, before)``."""
        waiting: deque[Taught] = deque()  # the reader works ahead

        def requests() -> Iterator[Requests]:
            for part in parts:
                waiting.append(part)
                yield part.requests

        for batch in self.reader.each(requests(), since=since, before=before):
            part = waiting.popleft()
            weight_C = torch.from_numpy(part.requests.supervision.weight)
            lesson = part.labels.lesson(batch, weight_C=weight_C)
            yield ExpertBatch(requests=batch, slots=self.vocabulary(batch), teacher=part.features, lesson=lesson)

    def _untaught(self, requests: Requests, features: TeacherFeatures) -> Taught:
        """Requests to be predicted, not distilled from."""
        return Taught(requests=requests, features=features, labels=TeacherLabels.of(features))
