"""What the train loop calls to train all arms of one surface's expert, side by side on the same batches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from torch import Tensor

from experts.arms import ArmsConfig
from experts.fusion import TeacherFeatures
from experts.member import Member
from experts.model import ExpertModel
from experts.past import PastEmbeddings
from experts.teacher import TeacherReader
from foundation.hstu.optimiser import ModelOptimiser
from foundation.hstu.vocabulary import BatchSlots, BatchVocabulary
from hypercast.pins import Pin
from hypercast.store.tae_log import TaeLog
from hypercast.tensors import save
from hypercast.training.flops import flops_per_candidate
from hypercast.training.loop import ContinualTrainer
from streaming.batch import RequestBatch
from streaming.config import dump
from streaming.dataset import Window
from streaming.errors import ConfigError
from streaming.files import write_directory
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer import predictions
from transfer.distill import Lesson
from transfer.gain import FM_HEAD
from transfer.predictions import Column, prediction_table


@dataclass(frozen=True, kw_only=True)
class ExpertBatch:
    """Requests of one surface with what the foundation model logged about them."""

    requests: RequestBatch
    slots: BatchSlots
    teacher: TeacherFeatures
    lesson: Lesson


class SurfaceLearner:
    """All arms and seeds of one surface. Arms share data order and, parameter by parameter, initial values."""

    class Config(ArmsConfig):
        """Beside what the arms are (:class:`experts.arms.ArmsConfig`), how they learn. Attributes:

        batch_size: requests of the surface in a training step.
        vocabulary: sizes of the embedding tables; all arms share it, as they share their batches.
        past: of ``tae_history``.
        teacher_delay_windows: how much older than it need be what the teacher says is, vectors and labels alike; see
            :class:`experts.teacher.TeacherReader`.
        optimiser: of arms that start from nothing.
        residual_optimiser: of arms that start from the teacher's logit, and so have less to learn.
        """

        batch_size: int = pydantic.Field(default=48, ge=1)
        vocabulary: BatchVocabulary.Config = BatchVocabulary.Config()
        past: PastEmbeddings.Config = PastEmbeddings.Config()
        teacher_delay_windows: int = pydantic.Field(default=0, ge=0)
        optimiser: ModelOptimiser.Config = ModelOptimiser.Config(learning_rate=5e-3)
        residual_optimiser: ModelOptimiser.Config = ModelOptimiser.Config(learning_rate=2e-4, table_learning_rate=3e-3)
        trainer: ContinualTrainer.Config = ContinualTrainer.Config()

    def __init__(
        self,
        *,
        config: Config,
        surface: str,
        workspace: Workspace,
        log: TaeLog,
        pin: Pin,
        embedding: int,
        seeds: list[int],
        run: Path,
        encoding: int | None = None,
    ) -> None:
        """``embedding``: width of the teacher's ``penultimate``; ``encoding``: of its ``sequence`` and ``user``, which
        no arm can read without it.
        """
        self.config = config
        self.surface = surface
        self.index = workspace.inputs.surfaces.index(surface)
        self.workspace = workspace
        self.log = log
        self.pin = pin
        self.run = run
        self.seeds = seeds
        histories = {
            "surface": (workspace.engagements.only(self.index), config.model.history),
            "all": (workspace.engagements, config.cross_history),
        }
        self.reader = workspace.reader(histories)
        self.vocabulary = config.vocabulary.build(workspace.inputs)
        self.widths = {"penultimate": embedding, "past": embedding}
        if encoding is not None:
            self.widths |= {"sequence": encoding, "user": encoding}
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
        )
        arms = config.models(inputs=workspace.inputs, widths=self.widths)
        self.members = {
            (arm, seed): self._member(arm_config, seed) for seed in seeds for arm, arm_config in arms.items()
        }

    @torch.inference_mode()
    def evaluate(self, window: Window) -> Mapping[str, float]:
        """Predict the window with every arm and write the predictions; returns coverage and collision rates."""
        self.vocabulary.eval()
        requests = self.workspace.requests(window.index).on_surface(self.index)
        told = self.teacher.read(window.index, requests)
        said: dict[tuple[str, int], list[Tensor]] = {member: [] for member in self.members}
        for batch in self._batches(requests, told.features, size=4 * self.config.batch_size):
            for key, member in self.members.items():
                output = member.model.eval()(batch.requests, batch.slots, batch.teacher)
                said[key].append(output.logit_CT.sigmoid())
        columns: dict[Column, np.ndarray] = {}
        for index, task in enumerate(self.workspace.inputs.tasks):
            for (arm, seed), parts in said.items():
                values = torch.cat(parts)[:, index].numpy() if parts else np.zeros(0, dtype=np.float32)
                columns[Column(task, arm, seed)] = values
            columns[Column(task, FM_HEAD, 0)] = 1 / (1 + np.exp(-told.features.logit_CT[:, index].numpy()))
        table = prediction_table(requests, columns, tasks=self.workspace.inputs.tasks)
        predictions.write(self.run, surface=self.surface, window=window.index, table=table)
        rows = max(len(requests.item), 1)
        coverage = {f"coverage/{status.lower()}": count / rows for status, count in told.counts.items()}
        return coverage | self.vocabulary.collision_rates(self.reader, requests)

    def batches(self, window: Window) -> Iterator[ExpertBatch]:
        """The surface's requests whose labels became known in the window, in time order."""
        self.vocabulary.train()
        for made, learned in self.workspace.learned_in(window):
            requests = learned.on_surface(self.index)
            features = self.teacher.read(made, requests).features
            yield from self._batches(
                requests, features, size=self.config.batch_size, since=window.start, before=window.end
            )

    def step(self, batch: ExpertBatch) -> Mapping[str, float]:
        return {
            f"{arm}.seed{seed}/train_loss": member.step(batch.requests, batch.slots, batch.teacher, batch.lesson).item()
            for (arm, seed), member in self.members.items()
        }

    def finish(self, window: Window) -> Mapping[str, float]:
        return self.vocabulary.statistics()

    def flops(self, window: Window) -> dict[str, float]:
        """Floating-point operations of every arm for one candidate, on the window's first batch; empty without one."""
        self.vocabulary.eval()
        requests = self.workspace.requests(window.index).on_surface(self.index)
        features = self.teacher.read(window.index, requests).features
        batch = next(self._batches(requests, features, size=self.config.batch_size), None)
        if batch is None:
            return {}
        return {
            arm: flops_per_candidate(
                partial(member.model.eval(), batch.requests, batch.slots, batch.teacher),
                candidates=len(batch.requests.item_C),
            )
            for (arm, _), member in self.members.items()
        }

    def export(self, folder: Path) -> None:
        """Write the first seed's experts, weights and vocabulary without optimisers, to ``folder/ARM``."""
        for (arm, seed), member in self.members.items():
            if seed != self.seeds[0] or (folder / arm).exists():
                continue
            parts = {"model": member.model.state_dict(), "vocabulary": self.vocabulary.state_dict()}
            tensors = {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}
            config = member.model.config

            def write(partial: Path, tensors: dict[str, Tensor] = tensors, text: str = dump(config)) -> None:
                save(partial / "expert.safetensors", tensors)
                (partial / "expert.yaml").write_text(text, encoding="utf-8")

            write_directory(folder / arm, write)

    def state_dict(self) -> dict[str, Any]:
        members = {f"{arm}.seed{seed}": member.state_dict() for (arm, seed), member in self.members.items()}
        return {"vocabulary": self.vocabulary.state_dict(), "members": members}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.vocabulary.load_state_dict(state["vocabulary"])
        for (arm, seed), member in self.members.items():
            member.load_state_dict(state["members"][f"{arm}.seed{seed}"])

    def _member(self, config: ExpertModel.Config, seed: int) -> Member:
        model = config.build(
            inputs=self.workspace.inputs,
            vocabulary=self.vocabulary,
            embedding=self.widths[config.representation],
            seed=seed,
        )
        optimiser = self.config.residual_optimiser if config.logit_residual else self.config.optimiser
        return Member(model=model, optimiser=optimiser, seed=seed)

    def _batches(
        self, requests: Requests, features: TeacherFeatures, *, size: int, since: int = 0, before: int = 0
    ) -> Iterator[ExpertBatch]:
        weight_C = torch.from_numpy(requests.supervision.weight)
        start = 0
        for batch in self.reader.batches(requests, size=size, since=since, before=before):
            rows = slice(start, start + len(batch.item_C))
            start = rows.stop
            teacher = features[rows]
            lesson = Lesson(
                label_CT=batch.labels.label_CT,
                known_CT=batch.labels.known_CT,
                teacher_CT=teacher.logit_CT,
                present_C=teacher.present_C,
                weight_C=weight_C[rows],
            )
            yield ExpertBatch(requests=batch, slots=self.vocabulary(batch), teacher=teacher, lesson=lesson)
