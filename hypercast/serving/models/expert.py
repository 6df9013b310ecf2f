"""An exported expert, scoring what is asked now.

::

    RUN/experts/SURFACE/window=00053/ARM/
      ...                    experts.export: all that it needs to predict

Shape legend: C candidates, H heads, T tasks.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from experts.fusion import TeacherFeatures, Vectors
from experts.model import TOWER_INPUT, ExpertModel, ExpertOutput
from experts.teacher import PAST
from foundation.hstu.delayed import DelayedHeads
from foundation.hstu.vocabulary import BatchVocabulary
from hypercast import tensors
from hypercast.errors import RegistryError
from hypercast.serving.features.asked import Asked, AskedBatches
from hypercast.serving.features.rates import RateTables
from hypercast.serving.models.frozen import FrozenVocabulary
from hypercast.serving.precision.compact import Precision, compact
from hypercast.serving.precision.report import Report
from hypercast.serving.precision.watching import Watching
from streaming import config as configuration
from streaming.inputs import Inputs
from streaming.workspace import Workspace


class ExpertScorer:
    """One arm of one surface's expert, loaded. For one thread at a time.

    Args:
        folder: of the export.
        surface: its name.
        workspace: the data set.
        dims: widths of the teacher's representations; empty where there is no teacher.
        as_of: up to when it has learned, microseconds; how long conversions take is estimated as of then.
        tables: opens label rates, if it reads any; for those who open several experts.

    Attributes: ``folder``, ``surface``, ``as_of``; ``arm``, the name of the folder; ``representation``: of the
    teacher's vectors, what it reads (None: nothing), and ``widths``, of what it reads by name; ``reads_logits``:
    whether it reads the teacher's logits too; ``tasks``: names, in the order of what it says; ``model``, in float32 and
    evaluation mode; ``report``: what the compact model that answers has in other layers, None where the float32 model
    answers.

    Raises:
        RegistryError: there is no whole export in the folder, or it was made for other widths or another data set.
    """

    def __init__(
        self,
        *,
        folder: Path,
        surface: str,
        workspace: Workspace,
        dims: Mapping[str, int],
        as_of: int,
        tables: RateTables | None = None,
    ) -> None:
        config = configuration.load(folder / "expert.yaml", ExpertModel.Config)
        self.folder, self.surface, self.arm = folder, surface, folder.name
        self.index = workspace.inputs.surfaces.index(surface)
        self.representation = _representation(config)
        self.reads_logits = config.logit_residual
        self.tasks = [task.name for task in workspace.plan.tasks]
        if self.representation == PAST:
            raise RegistryError(
                f"{folder}: the expert reads what the log has said of a user in earlier windows, which no service "
                "holds. Serve another arm, for example tae."
            )
        self._width = self._width_of(dims)
        self.widths = {} if self.representation is None else {self.representation: self._width}
        self._rates = (tables or RateTables(workspace)).of(folder)
        inputs = workspace.inputs if self._rates is None else self._rates.inputs(workspace.inputs)
        state = _parts(folder / "expert.safetensors")
        embedding = self._width if config.fusion else 1
        try:
            vocabulary = _vocabulary(state["vocabulary"], inputs).eval()
            model = config.build(inputs=inputs, vocabulary=vocabulary, embedding=embedding, seed=0)
            model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise RegistryError(
                f"{folder}: made for other vectors or another data set than {workspace.dataset.path}, with dims "
                f"{dict(dims)}: {error}. Export it again: hypercast run PLATFORM.yaml."
            ) from None
        self.model = model.eval()
        self._vocabulary = FrozenVocabulary(vocabulary, items=workspace.items, users=workspace.users)
        own = None if config.shared else self.index
        histories: dict[str, tuple[int | None, int]] = {"surface": (own, config.history)}
        if "all" in model.histories:
            histories["all"] = (None, config.cross_history)
        self._reader = AskedBatches(workspace=workspace, histories=histories)
        self._workspace = workspace
        self._heads = DelayedHeads(workspace.plan)
        self.as_of = as_of
        self._curves = workspace.delay_curves(as_of)
        self.report: Report | None = None
        self._answers: Callable[..., ExpertOutput] = self.model

    @torch.inference_mode()
    def score(self, asked: Asked, teacher: TeacherFeatures | None = None) -> np.ndarray:
        """Probability of every task for every candidate, float32 ``[C, T]``, in the order of ``asked``.

        Args:
            asked: candidates of the expert's surface.
            teacher: what the foundation model says of them; None: nothing, as where the log has no row.
        """
        logit_CH = self._answers(*self._call(asked, teacher)).logit_CT
        windows = self._workspace.asked(asked, now=self.as_of, curves=self._curves)
        return self._heads.probability(self.model.probability(logit_CH), windows).numpy()

    @torch.inference_mode()
    def rehearse(self, sample: Sequence[Asked], told: Sequence[TeacherFeatures | None]) -> Tensor:
        """What the float32 model says of a sample: logits as trained, ``[C, H]``; ``told`` part by part."""
        return torch.cat([self.model(*self._call(*part)).logit_CT for part in zip(sample, told, strict=True)])

    def compacted(
        self,
        sample: Sequence[Asked],
        told: Sequence[TeacherFeatures | None],
        *,
        reference: Tensor,
        precision: Precision,
        watching: Watching,
    ) -> "ExpertScorer":
        """The same expert by a compact model under a watch, for a thread of its own; this one stays as it is.

        Args:
            sample: requests that it has learned from, in batches of the size that is served.
            told: what it reads of the foundation model that will serve it, part by part.
            reference: what it is held against: :meth:`rehearse` with what the foundation model says in float32.
            precision: bounds.
            watching: how it is watched while it answers.

        Raises:
            DataError: the sample has no candidate.
        """
        calls = [self._call(*part) for part in zip(sample, told, strict=True)]
        made = compact(self.model, precision, calls, reference=reference)
        other = copy.copy(self)
        if made.layers:
            other.report = made.report
            other._answers = watching.over(made, compact=made, reference=self.model)
        return other

    def _call(self, asked: Asked, teacher: TeacherFeatures | None) -> tuple[Any, ...]:
        """Arguments of the model."""
        batch = self._reader.batch(asked if self._rates is None else self._rates.beside(asked))
        told = self.nothing(len(asked.item)) if teacher is None else teacher
        return batch, self._vocabulary(batch), told

    def nothing(self, candidates: int) -> TeacherFeatures:
        """What is read where the teacher says nothing: zeros, with a mask of zeros."""
        present_C = torch.zeros(candidates)
        vectors = {}
        if self.representation is not None:
            zeros_CR = torch.zeros(candidates, self._width)
            vectors[self.representation] = Vectors(vector_CR=zeros_CR, present_C=present_C)
        logit_CT = torch.zeros(candidates, len(self._workspace.inputs.tasks))
        return TeacherFeatures(vectors=vectors, logit_CT=logit_CT, present_C=present_C)

    def _width_of(self, dims: Mapping[str, int]) -> int:
        if self.representation is None:
            return 0
        if self.representation not in dims:
            raise RegistryError(
                f"{self.folder}: the expert reads {self.representation!r} vectors, and the snapshot publishes "
                f"{sorted(dims) or 'none'}. Serve an arm without them, for example control, or publish them: "
                f"foundation.publisher.representations: [{self.representation}]."
            )
        return dims[self.representation]


def _representation(config: ExpertModel.Config) -> str | None:
    if config.tower is not None:
        return TOWER_INPUT
    return config.representation if config.fusion is not None else None


def _parts(file: Path) -> dict[str, dict[str, Tensor]]:
    """The state dicts of model and vocabulary."""
    if not file.is_file():
        raise RegistryError(f"{file}: missing: no whole expert was exported there. Export it: hypercast run.")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "vocabulary": {}}
    try:
        loaded = tensors.load(file)
    except SafetensorError as error:
        raise RegistryError(
            f"{file}: damaged ({error}). Delete {file.parent} and export again: hypercast run."
        ) from None
    for name, tensor in loaded.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def _vocabulary(state: Mapping[str, Tensor], inputs: Inputs) -> BatchVocabulary:
    """A vocabulary with tables as large as those of ``state``."""
    kinds = {"items": inputs.item_features, "users": inputs.user_features, "context": inputs.context}
    sizes = {
        feature: len(state[f"{kind}.ids.{index}.code"])
        for kind, features in kinds.items()
        for index, feature in enumerate(features)
        if f"{kind}.ids.{index}.code" in state
    }
    vocabulary = BatchVocabulary.Config(rows=sizes).build(inputs)
    vocabulary.load_state_dict(state)
    return vocabulary
