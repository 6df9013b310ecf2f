"""A round of speculation: predict, choose within the budget, compute by the newest snapshot, off any request's path."""

import numpy as np
import pydantic
import torch

from foundation.inference import CandidateScorer
from foundation.model import FoundationModel
from hypercast.registry import Registry
from hypercast.serving.speculation.budget import Budget, Plan
from hypercast.serving.speculation.moment import requests_at
from hypercast.serving.speculation.predictor import Predicted, Predictor
from hypercast.serving.speculation.speculated import Speculated
from hypercast.snapshot import Snapshot
from streaming.config import Config as BaseConfig
from streaming.requests import Requests
from streaming.workspace import Workspace


class Speculator:
    """Computes vectors of the pairs that will probably be asked for next (SOLARIS, arXiv 2604.12110).

    >>> speculated = speculator.run(window.start, horizon=window.end - window.start)
    >>> speculated.put(store)
    """

    class Config(BaseConfig):
        """Attributes:

        predictor: what it takes to be asked for next.
        budget: what a round may cost.
        lineage: whose newest snapshot computes.
        batch_size: users encoded at once.
        scorer: how many of their pairs at a time.
        """

        predictor: Predictor.Config = Predictor.Config()
        budget: Budget = Budget()
        lineage: str = "FM"
        batch_size: int = pydantic.Field(default=64, ge=1)
        scorer: CandidateScorer.Config = CandidateScorer.Config()

        def build(self, *, model: FoundationModel.Config, workspace: Workspace, registry: Registry) -> "Speculator":
            """For the snapshots in ``registry``, which have that ``model``."""
            return Speculator(config=self, model=model, workspace=workspace, registry=registry)

    def __init__(
        self, *, config: Config, model: FoundationModel.Config, workspace: Workspace, registry: Registry
    ) -> None:
        self.config = config
        self.workspace = workspace
        self.registry = registry
        self.predictor = config.predictor.build(workspace)
        self._model = model.build(inputs=workspace.inputs, seed=0).eval()
        self._scorer = config.scorer.build(self._model)
        self._reader = workspace.reader({"all": (workspace.engagements, model.history)})
        self._loaded: str | None = None

    def choose(self, now: int, *, horizon: int, budget: Budget | None = None) -> Predicted:
        """The pairs that :meth:`run` computes, best first; computes nothing. Arguments as there."""
        budget = budget or self.config.budget
        predicted = self.predictor.predict(now, horizon=horizon)
        source, spans = self.predictor.source, self.config.predictor.ranker.spans
        cost = budget.cost(source.reader.between(now - spans * horizon, now), spans=spans)
        chosen = Plan(predicted.pairs.user_id, predicted.chance, encoding=budget.encoding).within(cost)
        return Predicted(pairs=predicted.pairs.take(chosen), chance=predicted.chance[chosen])

    def run(self, now: int, *, horizon: int, budget: Budget | None = None) -> Speculated:
        """Speculate on what will be asked for in ``[now, now + horizon)``, in microseconds (UTC).

        Histories, features and statistics are as of just before ``now``, and the snapshot is one that had seen nothing
        later (laws L1 to L5): the same whenever it is run.

        Args:
            budget: in place of the configuration's.

        Raises:
            RegistryError: there is no snapshot with a watermark up to ``now``.
        """
        snapshot = self.registry.latest(self.config.lineage, as_of=now)
        chosen = self.choose(now, horizon=horizon, budget=budget)
        pairs = chosen.pairs
        order = np.lexsort((pairs.surface, pairs.item, pairs.user_id))  # by user, for the model
        requests = requests_at(now, pairs.take(order), self.predictor.source.asked(now), self.workspace)
        vector, logit, encoding = self._score(snapshot, requests)
        back = np.argsort(order)
        return Speculated(
            snapshot=snapshot,
            now=now,
            user_id=pairs.user_id,
            item_id=pairs.item_id,
            surface=pairs.surface,
            chance=chosen.chance,
            vector=vector[back],
            logit=logit[back],
            users=requests.user_id,
            encoding=encoding,
        )

    @torch.inference_mode()
    def _score(self, snapshot: Snapshot, requests: Requests) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vectors ``[N, R]`` and logits ``[N, T]`` of every candidate, and encodings ``[U, D]`` of every user."""
        if snapshot.name != self._loaded:
            self._model.load_state_dict(snapshot.load())
            self._loaded = snapshot.name
        config, tasks = self._model.config, self._model.main_heads.out_features
        parts = [tuple(torch.zeros(0, width) for width in (config.representation, tasks, config.width))]
        for batch in self._reader.batches(requests, size=self.config.batch_size):
            said = self._scorer.score(batch)
            parts.append((said.penultimate_CR, said.logit_CT, self._model.user(batch)))
        vector_NR, logit_NT, encoding_UD = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        return vector_NR, logit_NT, encoding_UD
