"""What the train loop calls to train all arms of one surface's expert, side by side on the same batches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic
import torch
from torch import Tensor

from experts.arms import arm_configs
from experts.fusion import GatedFusion, TeacherFeatures
from experts.model import ExpertModel
from foundation.hstu.loss import masked_log_loss
from foundation.hstu.optimiser import ModelOptimiser
from foundation.hstu.vocabulary import BatchSlots, BatchVocabulary
from hypercast.pins import Pin
from hypercast.store.embeddings import Embeddings
from hypercast.store.tae_log import TaeLog
from hypercast.tensors import save
from hypercast.training.flops import flops_per_candidate
from hypercast.training.loop import ContinualTrainer
from hypercast.training.random import get_states, set_states
from streaming.batch import RequestBatch
from streaming.config import Config as BaseConfig
from streaming.config import dump
from streaming.dataset import Window
from streaming.files import write_directory
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer import predictions
from transfer.gain import FM_HEAD
from transfer.predictions import Column


@dataclass(frozen=True, kw_only=True)
class ExpertBatch:
    """Requests of one surface with what the foundation model logged about them."""

    requests: RequestBatch
    slots: BatchSlots
    teacher: TeacherFeatures


@dataclass(frozen=True, kw_only=True)
class Member:
    """One arm with one seed."""

    model: ExpertModel
    optimiser: ModelOptimiser


class SurfaceLearner:
    """All arms and seeds of one surface. Arms share data order and, parameter by parameter, initial values."""

    class Config(BaseConfig):
        """Attributes:

        batch_size: requests of the surface in a training step.
        model: the control; other arms follow from it (see :mod:`experts.arms`).
        vocabulary: sizes of the embedding tables; all arms share it, as they share their batches.
        fusion: how the arms that read the embedding take it in.
        cross_history: engagements of all surfaces that ``control_matched`` attends to.
        optimiser: of arms that start from nothing.
        residual_optimiser: of arms that start from the teacher's logit, and so have less to learn.
        """

        batch_size: int = pydantic.Field(default=48, ge=1)
        model: ExpertModel.Config = ExpertModel.Config()
        vocabulary: BatchVocabulary.Config = BatchVocabulary.Config()
        fusion: GatedFusion.Config = GatedFusion.Config()
        cross_history: int = 128
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
    ) -> None:
        self.config = config
        self.surface = surface
        self.index = workspace.inputs.surfaces.index(surface)
        self.workspace = workspace
        self.log = log
        self.pin = pin
        self.embedding = embedding
        self.run = run
        self.seeds = seeds
        histories = {
            "surface": (workspace.engagements.only(self.index), config.model.history),
            "all": (workspace.engagements, config.cross_history),
        }
        self.reader = workspace.reader(histories)
        self.vocabulary = config.vocabulary.build(workspace.inputs)
        arms = arm_configs(
            config.model,
            fusion=config.fusion,
            cross_history=config.cross_history,
            inputs=workspace.inputs,
            embedding=embedding,
        )
        self.members = {
            (arm, seed): self._member(arm_config, seed) for seed in seeds for arm, arm_config in arms.items()
        }

    @torch.inference_mode()
    def evaluate(self, window: Window) -> Mapping[str, float]:
        """Predict the window with every arm and write the predictions; returns coverage and collision rates."""
        self.vocabulary.eval()
        requests, embeddings = self._read(window.index, self.workspace.requests(window.index))
        said: dict[tuple[str, int], list[Tensor]] = {member: [] for member in self.members}
        for batch in self._batches(requests, embeddings, size=4 * self.config.batch_size):
            for key, member in self.members.items():
                said[key].append(member.model.eval()(batch.requests, batch.slots, batch.teacher).sigmoid())
        columns: dict[Column, np.ndarray] = {}
        for index, task in enumerate(self.workspace.inputs.tasks):
            for (arm, seed), parts in said.items():
                values = torch.cat(parts)[:, index].numpy() if parts else np.zeros(0, dtype=np.float32)
                columns[Column(task, arm, seed)] = values
            columns[Column(task, FM_HEAD, 0)] = 1 / (1 + np.exp(-embeddings.teacher_logit[:, index]))
        predictions.write(self.run, surface=self.surface, window=window.index, table=self._table(requests, columns))
        rows = max(len(requests.item), 1)
        coverage = {f"coverage/{status.lower()}": count / rows for status, count in embeddings.counts().items()}
        return coverage | self.vocabulary.collision_rates(self.reader, requests)

    def batches(self, window: Window) -> Iterator[ExpertBatch]:
        """The surface's requests whose labels became known in the window, in time order."""
        self.vocabulary.train()
        for made, learned in self.workspace.learned_in(window):
            requests, embeddings = self._read(made, learned)
            yield from self._batches(
                requests, embeddings, size=self.config.batch_size, since=window.start, before=window.end
            )

    def step(self, batch: ExpertBatch) -> Mapping[str, float]:
        labels = batch.requests.labels
        losses = {}
        for (arm, seed), member in self.members.items():
            logit_CT = member.model.train()(batch.requests, batch.slots, batch.teacher)
            loss = masked_log_loss(logit_CT, labels.label_CT, labels.known_CT)
            member.optimiser.step(loss)
            losses[f"{arm}.seed{seed}/train_loss"] = loss.item()
        return losses

    def finish(self, window: Window) -> Mapping[str, float]:
        return self.vocabulary.statistics()

    def flops(self, window: Window) -> dict[str, float]:
        """Floating-point operations of every arm for one candidate, on the window's first batch; empty without one."""
        self.vocabulary.eval()
        requests, embeddings = self._read(window.index, self.workspace.requests(window.index))
        batch = next(self._batches(requests, embeddings, size=self.config.batch_size), None)
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
        members = {
            f"{arm}.seed{seed}": {
                "model": member.model.state_dict(),
                "optimiser": member.optimiser.state_dict(),
                "dropout": get_states(member.model),
            }
            for (arm, seed), member in self.members.items()
        }
        return {"vocabulary": self.vocabulary.state_dict(), "members": members}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.vocabulary.load_state_dict(state["vocabulary"])
        for (arm, seed), member in self.members.items():
            saved = state["members"][f"{arm}.seed{seed}"]
            member.model.load_state_dict(saved["model"])
            member.optimiser.load_state_dict(saved["optimiser"])
            set_states(member.model, saved["dropout"])

    def _member(self, config: ExpertModel.Config, seed: int) -> Member:
        model = config.build(
            inputs=self.workspace.inputs, vocabulary=self.vocabulary, embedding=self.embedding, seed=seed
        )
        optimiser = self.config.residual_optimiser if config.logit_residual else self.config.optimiser
        return Member(model=model, optimiser=optimiser.build(model))

    def _read(self, window: int, requests: Requests) -> tuple[Requests, Embeddings]:
        """The surface's part of ``requests`` and what the log holds for it."""
        own = requests.on_surface(self.index)
        embeddings = self.log.read(
            window=window,
            pin=self.pin,
            request_id=own.request_id[own.owner],
            candidate_id=own.candidate_id,
            time=own.time[own.owner],
            width=self.embedding,
            tasks=self.workspace.inputs.tasks,
            requests_digest=self.workspace.dataset.requests_digest(window),
        )
        return own, embeddings

    def _batches(
        self, requests: Requests, embeddings: Embeddings, *, size: int, since: int = 0, before: int = 0
    ) -> Iterator[ExpertBatch]:
        vector_CR = torch.from_numpy(embeddings.vector)
        logit_CT = torch.from_numpy(embeddings.teacher_logit)
        present_C = torch.from_numpy(embeddings.present.astype(np.float32))
        start = 0
        for batch in self.reader.batches(requests, size=size, since=since, before=before):
            rows = slice(start, start + len(batch.item_C))
            start = rows.stop
            teacher = TeacherFeatures(vector_CR=vector_CR[rows], logit_CT=logit_CT[rows], present_C=present_C[rows])
            yield ExpertBatch(requests=batch, slots=self.vocabulary(batch), teacher=teacher)

    def _table(self, requests: Requests, columns: Mapping[Column, np.ndarray]) -> pa.Table:
        owner, supervision = requests.owner, requests.supervision
        known = supervision.known_time < supervision.NEVER
        fields: dict[str, pa.Array] = {
            "request_id": pa.array(requests.request_id[owner]),
            "user_id": pa.array(requests.user_id[owner]),
            "candidate_id": pa.array(requests.candidate_id.astype(np.int32)),
            "time": pa.array(requests.time[owner]).cast(pa.timestamp("us", tz="UTC")),
            "weight": pa.array(supervision.weight),
            "stratum": pa.array(supervision.stratum),
        }
        for tag, flags in requests.tags.items():
            fields[f"tag_{tag}"] = pa.array(flags[owner])
        for index, task in enumerate(self.workspace.inputs.tasks):
            fields[f"label_{task}"] = pa.array(supervision.label[:, index], mask=~known[:, index])
        for column, values in columns.items():
            fields[column.name] = pa.array(values.astype(np.float32))
        schema = predictions.schema(tasks=self.workspace.inputs.tasks, tags=list(requests.tags), columns=list(columns))
        return pa.table(fields, schema=schema)
