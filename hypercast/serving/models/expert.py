"""An exported expert, scoring what is asked now.

::

    RUN/experts/SURFACE/window=00053/ARM/
      expert.yaml            ExpertModel.Config
      expert.safetensors     model.NAME and vocabulary.NAME: all that it needs to predict

Shape legend: C candidates, H heads, T tasks.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from experts.fusion import TeacherFeatures, Vectors
from experts.model import TOWER_INPUT, ExpertModel
from experts.teacher import PAST
from foundation.hstu.delayed import DelayedHeads
from foundation.hstu.vocabulary import BatchVocabulary
from hypercast import tensors
from hypercast.errors import RegistryError
from hypercast.serving.features.asked import Asked, AskedBatches
from hypercast.serving.models.frozen import FrozenVocabulary
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

    Attributes: ``folder``, ``surface``, ``as_of``; ``arm``, the name of the folder; ``representation``: of the
    teacher's vectors, what it reads (None: nothing), and ``widths``, of what it reads by name; ``reads_logits``:
    whether it reads the teacher's logits too; ``tasks``: names, in the order of what it says.

    Raises:
        RegistryError: there is no whole export in the folder, or it was made for other widths or another data set.
    """

    def __init__(
        self, *, folder: Path, surface: str, workspace: Workspace, dims: Mapping[str, int], as_of: int
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
        state = _parts(folder / "expert.safetensors")
        embedding = self._width if config.fusion else 1
        try:
            vocabulary = _vocabulary(state["vocabulary"], workspace.inputs).eval()
            model = config.build(inputs=workspace.inputs, vocabulary=vocabulary, embedding=embedding, seed=0)
            model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise RegistryError(
                f"{folder}: made for other vectors or another data set than {workspace.dataset.path}, with dims "
                f"{dict(dims)}: {error}. Export it again: hypercast run PLATFORM.yaml."
            ) from None
        self.model = model.eval()
        self._vocabulary = FrozenVocabulary(vocabulary, items=workspace.items, users=workspace.users)
        histories: dict[str, tuple[int | None, int]] = {"surface": (self.index, config.history)}
        if "all" in model.histories:
            histories["all"] = (None, config.cross_history)
        self._reader = AskedBatches(workspace=workspace, histories=histories)
        self._workspace = workspace
        self._heads = DelayedHeads(workspace.plan)
        self.as_of = as_of
        self._curves = workspace.delay_curves(as_of)

    @torch.inference_mode()
    def score(self, asked: Asked, teacher: TeacherFeatures | None = None) -> np.ndarray:
        """Probability of every task for every candidate, float32 ``[C, T]``, in the order of ``asked``.

        Args:
            asked: candidates of the expert's surface.
            teacher: what the foundation model says of them; None: nothing, as where the log has no row.
        """
        batch = self._reader.batch(asked)
        told = self.nothing(len(asked.item)) if teacher is None else teacher
        logit_CH = self.model(batch, self._vocabulary(batch), told).logit_CT
        windows = self._workspace.asked(asked, now=self.as_of, curves=self._curves)
        return self._heads.probability(self.model.probability(logit_CH), windows).numpy()

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
