"""A snapshot of the foundation model, scoring what is asked now.

Vectors come out as the TAE log would give them back: rounded by the snapshot's codec, zeros where the snapshot is too
old. What an expert reads live is what it would have read of the log; of a compact model, within its bound.

Shape legend: C candidates, R width of a representation, T tasks.
"""

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from experts.fusion import TeacherFeatures, Vectors
from foundation.encoding import Reused, encoded, encoded_from
from foundation.histories import EncodedHistories
from foundation.inference import CandidateScorer
from foundation.model import FoundationModel
from foundation.publish import schema_hash
from hypercast.codec import rows
from hypercast.errors import RegistryError
from hypercast.serving.features.asked import Asked, AskedBatches
from hypercast.serving.models.frozen import FrozenVocabulary
from hypercast.serving.precision.compact import Precision, compact
from hypercast.serving.precision.report import Report
from hypercast.serving.precision.watching import Watching
from hypercast.snapshot import Snapshot
from hypercast.store.status import Freshness, Status
from streaming.batch import RequestBatch
from streaming.config import parse
from streaming.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a snapshot says of C candidates.

    Attributes:
        snapshot: its name.
        vectors: by representation, float32 ``[C, R]``; zeros where the status says so.
        logit_CT: float32; likewise.
        status: uint8 ``[C]``, values of :class:`Status`; MISS where a request is before the snapshot's watermark, which
            it must not answer (law L3).
        age: int64 ``[C]``, microseconds from the watermark to the request; 0 where MISS.
        reused: how many of the requests' histories were encoded for calls before.
    """

    snapshot: str
    vectors: Mapping[str, np.ndarray]
    logit_CT: np.ndarray
    status: np.ndarray
    age: np.ndarray
    reused: Reused

    @property
    def present(self) -> np.ndarray:
        """Bool ``[C]``: where there is a vector."""
        return self.status <= Status.STALE

    def features(self) -> TeacherFeatures:
        """As experts read them."""
        present_C = torch.from_numpy(self.present.astype(np.float32))
        vectors = {
            name: Vectors(vector_CR=torch.from_numpy(vector), present_C=present_C)
            for name, vector in self.vectors.items()
        }
        return TeacherFeatures(vectors=vectors, logit_CT=torch.from_numpy(self.logit_CT), present_C=present_C)


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What a model says of a batch: logits, and each representation that the snapshot publishes, before any codec."""

    logit_CT: Tensor
    vectors: Mapping[str, Tensor]
    reused: Reused

    @staticmethod
    @torch.inference_mode()
    def by(
        model: FoundationModel,
        batch: RequestBatch,
        owners: Sequence[Hashable] | None = None,
        *,
        settings: CandidateScorer.Config,
        names: Sequence[str],
        kept: EncodedHistories | None = None,
    ) -> "_Said":
        """What ``model`` says, with the representations of these names.

        With ``owners`` of the requests, histories that are ``kept`` are not encoded again, and others are kept.
        """
        if owners is None or kept is None:
            histories = encoded(model, batch)
        else:
            histories = encoded_from(kept, model, batch, owners=owners)
        output = settings.build(model).over(histories)
        found = {
            "penultimate": output.penultimate_CR,
            "sequence": output.sequence_CD,
            "tower_input": output.tower_input_CI,
        }
        if "user" in names:
            found["user"] = model.user(batch)[batch.owner_C]
        vectors = {name: found[name] for name in names}
        return _Said(logit_CT=output.logit_CT, vectors=vectors, reused=histories.reused)


class FoundationScorer:
    """One snapshot, loaded. For one thread at a time.

    Of keys and values, those of a request's context and history are computed once for all its candidates, and once for
    all requests of a call that share user, time and context, as the surfaces of one page do. Between calls they are
    kept for the user's next request, which takes of them what it would compute (:mod:`foundation.histories`).

    Args:
        snapshot: from the registry.
        workspace: the data set; its inputs must be those of the snapshot.
        ages: up to which age a snapshot's vectors are FRESH, and after which EXPIRED, as in the TAE log.
        scorer: how many candidates at a time.
        keep_bytes: of encoded histories that are kept, at most; 0 for none.

    Attributes: ``snapshot``; ``model``, in float32 and evaluation mode; ``report``: what the compact model that answers
    has in other layers, None where the float32 model answers; ``kept``: encoded histories, None for none.

    Raises:
        RegistryError: the snapshot was trained for other inputs, or says not what its model is.
    """

    def __init__(
        self,
        *,
        snapshot: Snapshot,
        workspace: Workspace,
        ages: Freshness,
        scorer: CandidateScorer.Config | None = None,
        keep_bytes: int = 0,
    ) -> None:
        described = snapshot.manifest["metadata"].get("model")
        if described is None:
            raise RegistryError(f"{snapshot.path}: {snapshot.name} says not what its model is: it cannot be served.")
        config = parse(described, FoundationModel.Config, source=f"{snapshot.path}/manifest.json: metadata.model")
        if schema_hash(config, workspace.inputs) != snapshot.manifest["schema_hash"]:
            raise RegistryError(
                f"{snapshot.path}: {snapshot.name} was trained on other inputs than those of {workspace.dataset.path}: "
                "other features, surfaces or tasks. Serve it with the data set that it was trained on."
            )
        self.snapshot = snapshot
        self.ages = ages
        self.model = config.build(inputs=workspace.inputs, seed=0).eval()
        self.model.load_state_dict(snapshot.load())
        frozen = FrozenVocabulary(self.model.vocabulary, items=workspace.items, users=workspace.users)
        self.model.vocabulary = frozen  # type: ignore[assignment]
        self._said = partial(_Said.by, settings=scorer or CandidateScorer.Config(), names=[*snapshot.dims])
        self._reader = AskedBatches(workspace=workspace, histories={"all": (None, config.history)})
        self._codec = rows.named(snapshot.dtype)
        self.report: Report | None = None
        self.kept = EncodedHistories(most=keep_bytes) if keep_bytes else None
        self._says: Callable[..., _Said] = partial(self._said, self.model, kept=self.kept)
        self._answers: Callable[..., _Said] = self._says
        """The same, and a watch that looks on."""

    def keeps(self, user_id: int) -> bool:
        """Whether a history of the user's is kept, and probably needs not be encoded; may be asked by any thread."""
        return self.kept is not None and self.kept.holds(user_id)

    @torch.inference_mode()
    def score(self, asked: Asked) -> Scored:
        """Every candidate's vectors and logits, in the order of ``asked``."""
        pages, place = asked.pages()
        said = self._answers(self._reader.batch(pages), pages.user_id.tolist())
        time = asked.time[asked.owner]
        answered = time >= self.snapshot.watermark
        age = np.where(answered, time - self.snapshot.watermark, 0)
        status = np.where(answered, self.ages.classify(age), np.uint8(Status.MISS)).astype(np.uint8)
        absent = np.flatnonzero(status > Status.STALE)
        vectors = {}
        for name in self.snapshot.dims:
            vectors[name] = self._rounded(said.vectors[name][place].numpy())
            vectors[name][absent] = 0
        logit_CT = said.logit_CT[place].numpy()
        logit_CT[absent] = 0
        return Scored(
            snapshot=self.snapshot.name,
            vectors=vectors,
            logit_CT=logit_CT,
            status=status,
            age=age,
            reused=said.reused,
        )

    @torch.inference_mode()
    def rehearse(self, asked: Asked) -> TeacherFeatures:
        """What experts would read of requests that the snapshot has learned from, for choosing kernels by.

        It must answer none of them (law L3), so nothing that comes of it is served, kept or trained on.
        """
        pages, place = asked.pages()
        said = self._says(self._reader.batch(pages))
        present_C = torch.ones(len(asked.item))
        rounded = {name: self._rounded(said.vectors[name][place].numpy()) for name in self.snapshot.dims}
        vectors = {
            name: Vectors(vector_CR=torch.from_numpy(vector), present_C=present_C) for name, vector in rounded.items()
        }
        return TeacherFeatures(vectors=vectors, logit_CT=said.logit_CT[place], present_C=present_C)

    def compacted(self, sample: Sequence[Asked], *, precision: Precision, watching: Watching) -> "FoundationScorer":
        """The same snapshot by a compact model under a watch, for a thread of its own; this one stays as it is.

        Args:
            sample: requests from before the watermark, in batches of the size that is served.
            precision: bounds.
            watching: how it is watched while it answers.

        Raises:
            DataError: the sample has no candidate.
        """
        calls = [(self._reader.batch(part.pages()[0]),) for part in sample]
        made = compact(self.model, precision, calls, logits=lambda model, batch: self._said(model, batch).logit_CT)
        other = copy.copy(self)
        if made.layers:
            other.report = made.report
            other.kept = EncodedHistories(most=self.kept.most) if self.kept is not None else None
            other._says = partial(self._said, made.model, kept=other.kept)
            reference = partial(self._said, self.model, kept=other.kept)
            other._answers = watching.over(made, compact=other._says, reference=reference)
        return other

    @torch.inference_mode()
    def logits(self, vector_CR: np.ndarray) -> np.ndarray:
        """What the main heads read of ``penultimate`` vectors float32 ``[C, R]``: logits, float32 ``[C, T]``.

        In float32 always: it is little to compute. Of vectors that a codec has rounded, those of the log differ by what
        the codec has lost.
        """
        return self.model.main_heads(torch.from_numpy(np.array(vector_CR, dtype=np.float32))).numpy()

    def _rounded(self, vector_CR: np.ndarray) -> np.ndarray:
        if self._codec.name == "float32" or not len(vector_CR):
            return vector_CR.astype(np.float32)
        return self._codec.decode(self._codec.encode(vector_CR), vector_CR.shape[1])
