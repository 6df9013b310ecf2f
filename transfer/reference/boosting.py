"""LightGBM on the same as-of features and attributes: what a user would pick instead of experts and their teacher.

With a teacher it also reads what that says of each candidate, and is the arm ``lightgbm_treated``: what a user of trees
gains by the teacher's word.

Boosted trees over the rows of all surfaces, refitted on the past every few windows (Ke et al., 2017). Each window is
predicted whole before anything of it is learned (law L4), from labels known before it began (L2)::

    RUN/predictions/SURFACE/window=00012.parquet      with the column p_TASK.ARM.seedN
    RUN/trees/ab12….txt                               one fit, named after all that it was fitted on: a run that was
                                                      stopped goes on from there

Needs the package ``lightgbm`` (``pip install hypercast-platform[lightgbm]``).
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic

from hypercast.training.random import stream_seed
from streaming.config import Config as BaseConfig
from streaming.dataset import Window
from streaming.errors import ConfigError
from streaming.files import write_text
from streaming.labels.attribution import closed
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer import predictions
from transfer.gain import LIGHTGBM as LIGHTGBM
from transfer.gain import LIGHTGBM_TREATED as LIGHTGBM_TREATED
from transfer.predictions import Column, prediction_table
from transfer.reference.features import TabularFeatures
from transfer.reference.teacher_logit import TeacherLogit

if TYPE_CHECKING:
    import lightgbm

TREES = "trees"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Learned:
    """One window's rows, as they looked when it was predicted: float32 ``[C, F]``, ``[C]``, and int64 ``[C]``."""

    feature_CF: np.ndarray
    label_C: np.ndarray
    known_time_C: np.ndarray


class Boosting:
    """Predicts windows one after the other."""

    class Config(BaseConfig):
        """Attributes:

        refit_every: windows between fits; while the past is young, fits come when it has doubled.
        past_windows: how many of the windows before are fitted on, at most.
        rounds: most trees; how many there are is decided by early stopping on the last window before.
        patience: trees without an improvement there after which a fit stops.
        learning_rate, leaves, min_rows, feature_share, row_share, l2: of LightGBM (``num_leaves``,
            ``min_data_in_leaf`` and ``min_data_per_group``, ``feature_fraction``, ``bagging_fraction``, ``lambda_l2``).
        categories: whether attributes and context are features, beside the surface.
        rate_half_life: windows after which a label counts half in the label rates.
        rate_strength: labels that the overall rate stands for in them.
        threads: of LightGBM.
        """

        refit_every: int = pydantic.Field(default=4, ge=1)
        past_windows: int = pydantic.Field(default=52, ge=1)
        rounds: int = pydantic.Field(default=600, ge=1)
        patience: int = pydantic.Field(default=30, ge=1)
        learning_rate: float = pydantic.Field(default=0.06, gt=0, le=1)
        leaves: int = pydantic.Field(default=63, ge=2)
        min_rows: int = pydantic.Field(default=100, ge=1)
        feature_share: float = pydantic.Field(default=0.5, gt=0, le=1)
        row_share: float = pydantic.Field(default=0.7, gt=0, le=1)
        l2: float = pydantic.Field(default=10.0, ge=0)
        categories: bool = True
        rate_half_life: float = pydantic.Field(default=16.0, gt=0)
        rate_strength: float = pydantic.Field(default=10.0, gt=0)
        threads: int = pydantic.Field(default=1, ge=1)

        def build(
            self, *, workspace: Workspace, task: str, seed: int, run: Path, teacher: Path | None = None
        ) -> "Boosting":
            return Boosting(config=self, workspace=workspace, task=task, seed=seed, run=run, teacher=teacher)

    def __init__(
        self, *, config: Config, workspace: Workspace, task: str, seed: int, run: Path, teacher: Path | None = None
    ) -> None:
        """``run``: folder that the predictions go to; ``teacher``: of a finished run, whose teacher is read.

        Raises:
            ConfigError: LightGBM is not installed, or the data set has no such task.
        """
        tasks = [each.name for each in workspace.plan.tasks]
        if task not in tasks:
            raise ConfigError(f"no task '{task}'; the data set has {', '.join(tasks)}.")
        self.config = config
        self.workspace = workspace
        self.column = Column(task, LIGHTGBM if teacher is None else LIGHTGBM_TREATED, seed)
        self.run = run
        self._lightgbm = _import_lightgbm()
        self._task = tasks.index(task)
        self._features = TabularFeatures(
            workspace=workspace,
            task=self._task,
            decay=0.5 ** (1 / config.rate_half_life),
            strength=config.rate_strength,
            categories=config.categories,
            teacher=None if teacher is None else self._reads(teacher),
        )
        self._past: deque[_Learned] = deque(maxlen=config.past_windows)
        self._model: lightgbm.Booster | None = None
        self._fitted_at = 0
        self._windows = 0

    def predict_all(
        self, windows: Sequence[Window], progress: Callable[[str, float], None] = lambda message, share: None
    ) -> None:
        """Predict ``windows``, which must be the data set's from its first on, and write the predictions."""
        for done, window in enumerate(windows, start=1):
            self.run_window(window)
            progress(f"{self.column.arm}, window {window.index}", done / len(windows))

    def run_window(self, window: Window) -> None:
        """Fit if it is time to, predict the whole window, write that, and only then take in what became known in it."""
        self._refit_if_due(window)
        requests = self.workspace.requests(window.index)
        feature_CF = self._features.of(requests)
        self._write(window, requests, self._score(feature_CF))
        supervision = requests.supervision
        task, time_C = self.workspace.dataset.config.tasks[self._task], requests.time[requests.owner]
        label_C, known_time_C = closed(
            task,
            time_C=time_C,
            label_C=supervision.label[:, self._task].copy(),
            known_C=supervision.known_time[:, self._task].copy(),
        )
        if task.attribution_seconds is not None and task.given is None:
            # A label of 1 is known sooner than one of 0: both count when either would be known.
            known_time_C = np.maximum(known_time_C, time_C + round(task.delay_seconds * 1_000_000))
        self._past.append(_Learned(feature_CF=feature_CF, label_C=label_C, known_time_C=known_time_C))
        self._windows += 1
        self._features.learn(window)

    def predict(self, requests: Requests) -> np.ndarray:
        """Probabilities float64 ``[C]`` from what was learned so far; candidates are scored each by itself (law L6)."""
        return self._score(self._features.of(requests))

    def _reads(self, teacher: Path) -> TeacherLogit:
        surfaces, windows = self.workspace.inputs.surfaces, self.workspace.dataset.windows
        return TeacherLogit(run=teacher, task=self.column.task, surfaces=surfaces, windows=windows)

    def _refit_if_due(self, window: Window) -> None:
        since = self._windows - self._fitted_at
        if self._windows and (self._model is None or since >= min(self.config.refit_every, self._fitted_at)):
            model = self._fit(window)
            if model is not None:
                self._model, self._fitted_at = model, self._windows

    def _fit(self, window: Window) -> "lightgbm.Booster | None":
        """Early stopping on the newest window finds how many trees; then as many on everything. None if too little."""
        parts = [known for part in self._past if len((known := _known_before(part, window.start))[1])]
        if len(parts) < 2:
            return None
        *earlier, (newest_CF, newest_C) = parts
        if len(np.unique(newest_C)) < 2 or len(np.unique(np.concatenate([label for _, label in earlier]))) < 2:
            return None
        kept = self.run / TREES / f"{_digest(self._parameters(window), self.config, parts)}.txt"
        if kept.is_file():
            return self._lightgbm.Booster(model_file=kept)
        train = self._dataset(earlier)
        held_out = self._lightgbm.Dataset(newest_CF, label=newest_C, reference=train)
        stop = self._lightgbm.early_stopping(self.config.patience, verbose=False)
        probe = self._lightgbm.train(
            self._parameters(window), train, self.config.rounds, valid_sets=[held_out], callbacks=[stop]
        )
        everything = self._dataset(parts)
        _logger.info("window %d: lightgbm with %d trees", window.index, probe.best_iteration)
        model = self._lightgbm.train(self._parameters(window), everything, probe.best_iteration)
        write_text(kept, model.model_to_string())
        return model

    def _dataset(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> "lightgbm.Dataset":
        """Features and labels of several windows."""
        names = self._features.names
        feature_CF, label_C = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        categorical = [names.index(name) for name in self._features.categorical]
        return self._lightgbm.Dataset(feature_CF, label=label_C, categorical_feature=categorical)

    def _parameters(self, window: Window) -> dict[str, Any]:
        config = self.config
        return {
            "objective": "binary",
            "metric": "binary_logloss",
            "learning_rate": config.learning_rate,
            "num_leaves": config.leaves,
            "min_data_in_leaf": config.min_rows,
            "feature_fraction": config.feature_share,
            "bagging_fraction": config.row_share,
            "bagging_freq": 1,
            "lambda_l2": config.l2,
            "min_data_per_group": config.min_rows,
            "cat_smooth": 50.0,
            "cat_l2": 20.0,
            "max_cat_threshold": 64,
            "seed": stream_seed(self.column.seed, LIGHTGBM, window.index) % 2**31,
            "num_threads": config.threads,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }

    def _score(self, feature_CF: np.ndarray) -> np.ndarray:
        """Before the first fit, the rate of the labels so far."""
        if self._model is None or not len(feature_CF):
            return np.full(len(feature_CF), self._features.prior)
        return np.asarray(self._model.predict(feature_CF, num_threads=self.config.threads))

    def _write(self, window: Window, requests: Requests, probability_C: np.ndarray) -> None:
        for index, surface in enumerate(self.workspace.inputs.surfaces):
            own = requests.on_surface(index)
            columns = {self.column: probability_C[requests.surface == index]}
            tasks = [task.name for task in self.workspace.plan.tasks]
            table = prediction_table(self.workspace.outcomes(own), columns, tasks=tasks)
            predictions.write(self.run, surface=surface, window=window.index, table=table)


def _known_before(part: _Learned, moment: int) -> tuple[np.ndarray, np.ndarray]:
    known = part.known_time_C < moment
    if known.all():
        return part.feature_CF, part.label_C
    return part.feature_CF[known], part.label_C[known]


def _digest(parameters: Mapping[str, Any], config: Boosting.Config, parts: Sequence[tuple[np.ndarray, ...]]) -> str:
    """Of all that decides what a fit makes of them; it is the same for any number of threads."""
    named = {**parameters, "rounds": config.rounds, "patience": config.patience, "num_threads": None}
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode())
    for part in parts:
        for array in part:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _import_lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise ConfigError(
            "the reference arm 'lightgbm' needs the package lightgbm: pip install 'hypercast-platform[lightgbm]'"
        ) from None
    return lightgbm
