"""Calibration of each task's probabilities, fitted to past windows only: law L4.

A head that ranks well may still say 0.2 where one in ten buys: its loss sums over tasks, its labels come late, its
base rate drifts. So each task's logit goes through ``slope * logit + intercept`` (Platt, 1999), fitted by maximum
likelihood to what the expert said before it learned the answer.

Shape legend: C candidates, T tasks, N bins of logits.
"""

import pydantic
import torch
from torch import Tensor, nn

from streaming.config import Config as BaseConfig

LIMIT = 16.0
"""Logits beyond are taken for this; a probability of 1e-7."""
BINS = 512
LEAST_SLOPE = 0.05
"""Calibration never turns a ranking around."""


class PlattCalibration(nn.Module):
    """``slope_T * logit + intercept_T``; the identity in training mode, and until a window has been closed.

    Training sees plain logits, so that calibration changes nothing of what is learned. Memory is bounded: logits and
    labels are kept as sums in 512 bins, whose effect on the fit is far below its own error, and older windows fade.

    A task whose calibration has of late cost more log loss than it saved, judged on windows as they came, keeps its
    plain logits until that turns: base rates move from week to week, and a good head gains nothing by following them.

    Order of a window: :meth:`clear`; predict it (:meth:`forward`, in evaluation mode) with what past windows said;
    :meth:`observe` its uncalibrated logits with the labels that became known in it; :meth:`close` it.

    Attributes (buffers, so part of ``state_dict()``):
        slope, intercept: float64 ``[T]``.
        past: float64 ``[T, N, 3]``: rows, positives and summed logits of closed windows, faded.
        saved: float64 ``[T]``: log loss that slope and intercept saved in closed windows, or would have; faded.
        pending, pending_saved: the same of the open window; no prediction depends on them.
    """

    class Config(BaseConfig):
        """Attributes:

        half_life: windows after which an observation counts half.
        prior: observations that the identity counts for, so that little data changes little.
        """

        half_life: float = pydantic.Field(default=16.0, gt=0)
        prior: float = pydantic.Field(default=5000.0, gt=0)

        def build(self, *, tasks: int) -> "PlattCalibration":
            return PlattCalibration(config=self, tasks=tasks)

    slope: Tensor
    intercept: Tensor
    past: Tensor
    pending: Tensor
    saved: Tensor
    pending_saved: Tensor

    def __init__(self, *, config: Config, tasks: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("slope", torch.ones(tasks, dtype=torch.float64))
        self.register_buffer("intercept", torch.zeros(tasks, dtype=torch.float64))
        self.register_buffer("past", torch.zeros(tasks, BINS, 3, dtype=torch.float64))
        self.register_buffer("pending", torch.zeros(tasks, BINS, 3, dtype=torch.float64))
        self.register_buffer("saved", torch.zeros(tasks, dtype=torch.float64))
        self.register_buffer("pending_saved", torch.zeros(tasks, dtype=torch.float64))

    def forward(self, logit_CT: Tensor) -> Tensor:
        """Float ``[C, T]``, of the dtype given."""
        if self.training:
            return logit_CT
        calibrated_CT = (self.slope * logit_CT + self.intercept).to(logit_CT.dtype)
        return torch.where(self.saved >= 0, calibrated_CT, logit_CT)

    @torch.no_grad()
    def observe(self, logit_CT: Tensor, label_CT: Tensor, known_CT: Tensor) -> None:
        """Note what was said, before calibration, about labels that have become known; counts from the next window on.

        Raises:
            ValueError: the shapes differ, or are not ``[C, T]``.
        """
        tasks = len(self.slope)
        if not logit_CT.shape == label_CT.shape == known_CT.shape or logit_CT.shape[1:] != (tasks,):
            shapes = [tuple(each.shape) for each in (logit_CT, label_CT, known_CT)]
            raise ValueError(f"logits, labels and known must have one shape [C, {tasks}]; got {shapes}.")
        label_TC, known_TC = label_CT.T.double(), known_CT.T.double()
        logit_TC = logit_CT.T.double().clamp(-LIMIT, LIMIT)
        calibrated_TC = self.slope[:, None] * logit_TC + self.intercept[:, None]
        saved_TC = _log_loss(logit_TC, label_TC) - _log_loss(calibrated_TC, label_TC)
        self.pending_saved += (saved_TC * known_TC).sum(dim=1)
        bin_TC = ((logit_TC + LIMIT) * (BINS / (2 * LIMIT))).long().clamp(max=BINS - 1)
        cell_TC = bin_TC + BINS * torch.arange(tasks)[:, None]
        for column, value_TC in enumerate((torch.ones_like(logit_TC), label_TC, logit_TC)):
            sums = torch.bincount(cell_TC.flatten(), (value_TC * known_TC).flatten(), minlength=tasks * BINS)
            self.pending[:, :, column] += sums.view(tasks, BINS)

    def clear(self) -> None:
        """Forget what the open window has noted, for it to be predicted again from the start."""
        self.pending.zero_()
        self.pending_saved.zero_()

    @torch.no_grad()
    def close(self) -> None:
        """End the window: fade the past, add what was observed, fit anew. A window without labels only fades."""
        fade = 0.5 ** (1.0 / self.config.half_life)
        for past, pending in ((self.past, self.pending), (self.saved, self.pending_saved)):
            past.mul_(fade).add_(pending)
        self.clear()
        for task in range(len(self.slope)):
            self.slope[task], self.intercept[task] = self._fit(self.past[task])

    def _fit(self, sums_N3: Tensor) -> tuple[float, float]:
        """Most likely slope and intercept under a prior of ``config.prior`` observations for 1 and 0."""
        rows_N, positives_N, logits_N = sums_N3[sums_N3[:, 0] > 0].unbind(1)
        mean_N = logits_N / rows_N
        slope, intercept = _newton(mean_N, rows_N, positives_N, prior=self.config.prior)
        if slope < LEAST_SLOPE:
            slope, intercept = _newton(mean_N, rows_N, positives_N, prior=self.config.prior, slope=LEAST_SLOPE)
        return slope, intercept


def _log_loss(logit: Tensor, label: Tensor) -> Tensor:
    return nn.functional.softplus(logit) - label * logit


def _newton(
    logit_N: Tensor, rows_N: Tensor, positives_N: Tensor, *, prior: float, slope: float | None = None
) -> tuple[float, float]:
    """Minimise the log loss plus ``prior / 8 * ((slope - 1)**2 + intercept**2)``; the slope too unless it is given.

    A quarter of a row's weight is the most that it curves the loss in the intercept: hence ``prior`` in rows. The loss
    is convex; steps are halved until they lower it.
    """
    design_N2 = torch.stack([logit_N, torch.ones_like(logit_N)], dim=1)
    identity_2 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    at_2 = identity_2 if slope is None else torch.tensor([slope, 0.0], dtype=torch.float64)
    free = slice(0 if slope is None else 1, 2)

    def loss(at_2: Tensor) -> float:
        said_N = design_N2 @ at_2
        fit = (rows_N * nn.functional.softplus(said_N) - positives_N * said_N).sum()
        return float(fit + prior / 8 * (at_2 - identity_2).square().sum())

    now = loss(at_2)
    for _ in range(50):
        chance_N = torch.sigmoid(design_N2 @ at_2)
        gradient_2 = design_N2.T @ (rows_N * chance_N - positives_N) + prior / 4 * (at_2 - identity_2)
        curve_N = rows_N * chance_N * (1 - chance_N)
        hessian_22 = design_N2.T @ (curve_N[:, None] * design_N2) + prior / 4 * torch.eye(2, dtype=torch.float64)
        step_2 = torch.zeros_like(at_2)
        step_2[free] = torch.linalg.solve(hessian_22[free, free], gradient_2[free])
        size = 1.0
        while size > 1e-6 and loss(at_2 - size * step_2) > now:
            size /= 2
        if size <= 1e-6 or float(step_2.abs().max()) < 1e-9:
            break  # as low as rounding lets it be
        at_2 = at_2 - size * step_2
        now = loss(at_2)
    return float(at_2[0]), float(at_2[1])
