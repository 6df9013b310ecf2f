"""Which pairs will be asked for until the next round, and with what chance; everything from before now (laws L1-L5).

Shape legend: N pairs.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from hypercast.serving.speculation.asked_log import AskedLog
from hypercast.serving.speculation.counts import Float, Int, find
from hypercast.serving.speculation.pairs import Pairs, PairSource
from hypercast.serving.speculation.ranker import Ranker
from streaming.config import Config as BaseConfig
from streaming.workspace import Workspace

_Keys = tuple[Int, Int, Int]
_Examples = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], Float]
Rule = Literal["learned", "popularity", "repeats", "random"]
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """``pairs`` and the ``chance`` of each, float64 ``[N]``: unless learned, a number that only ranks."""

    pairs: Pairs
    chance: Float


class Predictor:
    """Predicts what is asked for in ``[now, now + horizon)``."""

    class Config(BaseConfig):
        """Attributes:

        source: which pairs are considered, and what is known of them.
        ranker: how chances are learned.
        rule: ``learned``, or something simpler to compare with: ``popularity`` of item and surface times the user's
            activity, ``repeats`` of what the user asked for in the last horizon, ``random``.
        """

        source: PairSource.Config = PairSource.Config()
        ranker: Ranker.Config = Ranker.Config()
        rule: Rule = "learned"

        def build(self, workspace: Workspace, *, source: PairSource | None = None) -> "Predictor":
            """For a data set; ``source``: the one that others predict from too, so that its work is done once."""
            return Predictor(config=self, source=source or self.source.build(workspace))

    def __init__(self, *, config: Config, source: PairSource) -> None:
        self.config = config
        self.source = source
        self._examples: dict[tuple[int, int], _Examples] = {}

    def predict(self, now: int, *, horizon: int) -> Predicted:
        """The pairs that may be asked for in the ``horizon`` (microseconds) from ``now`` on (microseconds UTC).

        Empty while the past is shorter than two horizons: there is nothing to learn from.
        """
        ranker = self._ranker(now, horizon) if self.config.rule == "learned" else None
        pairs = self.source.at(now)
        if ranker is not None:
            return Predicted(pairs=pairs, chance=ranker.chance(pairs.feature))
        if self.config.rule == "learned":
            return Predicted(pairs=pairs.take(np.zeros(0, np.int64)), chance=np.zeros(0))
        return Predicted(pairs=pairs, chance=self._simple(pairs, now, horizon))

    def was_asked(self, pairs: Pairs, asked: AskedLog) -> npt.NDArray[np.bool_]:
        """Which pairs are among what was asked for, bool ``[N]``."""
        return self._among(_keys(pairs), _asked_keys(asked))

    def was_predicted(self, asked: AskedLog, pairs: Pairs) -> npt.NDArray[np.bool_]:
        """Which of the candidates that were asked for are among the pairs, bool ``[A]``."""
        return self._among(_asked_keys(asked), _keys(pairs))

    def _among(self, these: _Keys, those: _Keys) -> npt.NDArray[np.bool_]:
        """Which of ``these`` are among ``those``."""
        items, surfaces = self.source.items, self.source.surfaces
        users, user = np.unique(those[0], return_inverse=True)
        codes = np.unique((user * items + those[1]) * surfaces + those[2])
        user, known = find(users, these[0])
        return known & find(codes, (user * items + these[1]) * surfaces + these[2])[1]

    def _ranker(self, now: int, horizon: int) -> Ranker | None:
        """Learned from the last horizons; None where they leave nothing to tell apart."""
        since = [now - span * horizon for span in range(self.config.ranker.spans, 0, -1)]
        self._examples = {
            each: self._examples.get(each) or self._learnable(*each) for each in ((s, horizon) for s in since)
        }
        feature, outcome, weight = (np.concatenate(part) for part in zip(*self._examples.values(), strict=True))
        if not outcome.any() or outcome.all():
            return None
        return self.config.ranker.fit(feature, outcome, weight)

    def _learnable(self, since: int, horizon: int) -> "_Examples":
        """Pairs as of ``since`` and which were asked for within ``horizon``; never changes once that is past."""
        pairs = self.source.at(since)
        asked = self.was_asked(pairs, self.source.reader.between(since, since + horizon))
        settings = self.config.ranker
        random = np.random.default_rng([settings.seed, abs(since)])
        kept = np.flatnonzero(asked | (random.random(len(pairs)) < settings.negatives))
        weight = np.where(asked[kept], 1.0, 1.0 / settings.negatives)
        return pairs.feature[kept], asked[kept], weight

    def _simple(self, pairs: Pairs, now: int, horizon: int) -> Float:
        feature = dict(zip(self.source.names, pairs.feature.T.astype(np.float64), strict=True))
        if self.config.rule == "popularity":
            return feature["user_asks"] + feature["shown"]
        if self.config.rule == "repeats":
            again = self.was_asked(pairs, self.source.reader.between(now - horizon, now))
            return again + 1e-3 * feature["user_item_asks"]
        return np.random.default_rng([self.config.ranker.seed, abs(now)]).random(len(pairs))


def _keys(pairs: Pairs) -> _Keys:
    """Users, items and surfaces."""
    return pairs.user_id, pairs.item, pairs.surface


def _asked_keys(asked: AskedLog) -> _Keys:
    """The same of every candidate."""
    return asked.user_id[asked.owner], asked.item, asked.surface
