"""What training does until a label is known: wait, assume the negative, or learn shorter windows first.

A policy turns a task's stored labels into **columns of supervision**. A column has a label and the time at which that
label may be trained on, and teaches one **head**, a logit of the model. :mod:`streaming.labels.plan` makes of them what
is taught in a window, as plain labels that are known or not: everything after it stays as it is.

=================== ================== =============================================================================
policy              columns, heads     a candidate's examples
=================== ================== =============================================================================
``wait``            1, 1               one, when its label is known
``fake_negative``   2, 1               a negative at the request; a positive as well when it converts
``interpolation``   K, K               for each bucket of delays that it enters unconverted: whether it converts there,
                                       when the bucket is over
=================== ================== =============================================================================

Shape legend: C candidates, K columns of supervision.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import pydantic

from streaming.config import Config as BaseConfig
from streaming.errors import ConfigError
from streaming.labels.attribution import DAY, NEVER, Int, Labels, conversions, converts, window_of
from streaming.schema import TaskConfig

Correction = Literal["none", "weighted", "calibrated"]


@dataclass(frozen=True, kw_only=True)
class Head:
    """A logit that a model learns for a task.

    Attributes:
        name: the task's name, or ``TASK@3d`` for the bucket of delays that ends after three days.
        task: the task's name.
        start, end: the bucket in microseconds after the request, end included; both 0 for a head of the whole task.
        correction: of its fake negatives; None where it has none.
    """

    name: str
    task: str
    start: int = 0
    end: int = 0
    correction: Correction | None = None

    @property
    def fake_negatives(self) -> bool:
        """Whether two columns teach it: a negative at once, and a positive that comes later."""
        return self.correction is not None


class Wait(BaseConfig):
    """Train when the label is known.

    Attributes:
        early_positives: whether a conversion is trained on when it comes. Positives then run ahead of the negatives
            made beside them: fresher, and too many of them while traffic or rates grow. Otherwise both wait for the
            attribution window to pass.
    """

    kind: Literal["wait"] = "wait"
    early_positives: bool = True

    def heads(self, task: TaskConfig) -> list[Head]:
        return [Head(name=task.name, task=task.name)]

    def columns(self, task: TaskConfig, *, time_C: Int, label_C: np.ndarray, known_C: Int) -> list[Labels]:
        if self.early_positives or task.attribution_seconds is None:
            return [(label_C, known_C)]
        return [(label_C, np.where(known_C == NEVER, NEVER, time_C + window_of(task)))]


class FakeNegative(BaseConfig):
    """Train at once on a negative, and on a positive as well when the conversion comes.

    Of p N converting candidates among N, training then sees p N positives in (1 + p) N examples, so that a model which
    takes them as they come learns p / (1 + p). After Ktena et al., Addressing Delayed Feedback for Continuous Training
    with Neural Networks in CTR Prediction (arXiv 1907.06558), who name the corrections FNW and FNC.

    Attributes:
        correction: ``weighted`` (FNW): positives weigh 1 + p and negatives (1 - p)(1 + p), with the model's own p, no
            gradient. ``calibrated`` (FNC): learns p / (1 + p) = b and reads p = b / (1 - b). ``none``: reads b as p.
    """

    kind: Literal["fake_negative"] = "fake_negative"
    correction: Correction = "weighted"

    def heads(self, task: TaskConfig) -> list[Head]:
        require_attribution(task, self.kind)
        return [Head(name=task.name, task=task.name, correction=self.correction)]

    def columns(self, task: TaskConfig, *, time_C: Int, label_C: np.ndarray, known_C: Int) -> list[Labels]:
        conversion_C = conversions(label_C, known_C)
        negative = (np.zeros_like(label_C), np.where(known_C == NEVER, NEVER, time_C))
        positive = ((conversion_C != NEVER).astype(label_C.dtype), conversion_C)
        return [negative, positive]


class Interpolation(BaseConfig):
    """Heads of short windows, each trained as soon as its own has passed, combined into any window.

    Head k learns whether a candidate that has not converted within ``windows_days[k - 1]`` converts within
    ``windows_days[k]``: a hazard, so that windows never contradict each other and the freshest head moves all longer
    ones. A delay curve (:mod:`streaming.labels.delays`) then splits a bucket at the window asked for. After
    Personalized Interpolation (arXiv 2501.14103), and the delay buckets of arXiv 2101.02284.

    Attributes:
        windows_days: ends of the buckets, growing, shorter than the task's attribution window.
        tail: what comes after the last of them: ``head``, one more head up to the attribution window, which is only as
            fresh as that window is long; ``curve``, as many as the delay curve makes of what the heads say: fresh when
            rates change, and wrong when delays do.
    """

    kind: Literal["interpolation"] = "interpolation"
    windows_days: list[float] = pydantic.Field(default=[1.0, 3.0, 7.0], min_length=1)
    tail: Literal["head", "curve"] = "head"

    @pydantic.field_validator("windows_days")
    @classmethod
    def _growing(cls, days: list[float]) -> list[float]:
        if days[0] <= 0 or any(later <= earlier for earlier, later in pairwise(days)):
            raise ValueError(f"windows_days must be positive and grow, got {days}. Example: [1, 3, 7]")
        return days

    def ends(self, task: TaskConfig) -> list[int]:
        """Ends of the buckets in microseconds.

        Raises:
            ConfigError: a window is not shorter than the attribution window, or the task cannot be imputed.
        """
        require_attribution(task, self.kind)
        ends, whole = [round(days * DAY) for days in self.windows_days], window_of(task)
        if ends[-1] >= whole:
            raise ConfigError(
                f"labels.{task.name}.windows_days: {self.windows_days[-1]:g} days are not shorter than the task's "
                f"attribution window, {whole / DAY:g} days, which follows by itself. Example: "
                f"[{whole / DAY / 4:g}, {whole / DAY / 2:g}]"
            )
        return [*ends, whole] if self.tail == "head" else ends

    def heads(self, task: TaskConfig) -> list[Head]:
        return [
            Head(name=f"{task.name}@{end / DAY:g}d", task=task.name, start=start, end=end)
            for start, end in pairwise([0, *self.ends(task)])
        ]

    def columns(self, task: TaskConfig, *, time_C: Int, label_C: np.ndarray, known_C: Int) -> list[Labels]:
        conversion_C = conversions(label_C, known_C)
        at_risk_C, columns = known_C != NEVER, []
        for end in self.ends(task):
            converted_C = converts(time_C=time_C, conversion_C=conversion_C, window=end)
            label = (at_risk_C & converted_C).astype(label_C.dtype)
            columns.append((label, np.where(at_risk_C, time_C + end, NEVER)))
            at_risk_C = at_risk_C & ~converted_C
        return columns


LabelPolicy = Annotated[Wait | FakeNegative | Interpolation, pydantic.Field(discriminator="kind")]


def require_attribution(task: TaskConfig, kind: str) -> None:
    """Refuse to impute a task whose missing labels say something about the future.

    Raises:
        ConfigError: it declares no attribution window, or is given another one.
    """
    window_of(task)
    if task.given is not None:
        raise ConfigError(
            f"labels.{task.name}.kind: {kind} assumes an outcome before it is known, but whether {task.name} has one "
            f"at all is known only with {task.given}. Allowed: wait."
        )
