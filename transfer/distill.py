"""Learning from a teacher's predictions: plain distillation, and the auxiliary head with its adapter (ExFM).

A teacher's prediction is a constant: the loss has no gradient to it. It counts where the true label counts, so that
every example is distilled once, when its label becomes known, and only where the log had a row.

After ExFM (arXiv 2502.17494). Its weights alpha and beta are tuned there and not published; all are 1 here by default.

Shape legend: C candidates, T tasks, H width of what the heads read.
"""

from dataclasses import dataclass
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor, nn

from foundation.hstu.loss import masked_log_loss
from hypercast.training.random import normal_start
from streaming.config import Config as BaseConfig


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a step learns from.

    Attributes:
        label_CT: float32, true labels, 0 where unknown.
        known_CT: bool, which labels became known now (law L2).
        teacher_CT: float32, the teacher's logits; no gradient.
        present_C: float32, 1 where the teacher has said something.
        weight_C: float32, how many of the population a sampled candidate stands for. Supervision: no model reads it.
    """

    label_CT: Tensor
    known_CT: Tensor
    teacher_CT: Tensor
    present_C: Tensor
    weight_C: Tensor

    def taught_CT(self, *, population: bool) -> Tensor:
        """How much each teacher's prediction counts, float ``[C, T]``; 0 where label or teacher is not known.

        With ``population``, in proportion to ``weight_C``, whose mean over what is taught is taken for 1: the teacher's
        word then counts for the population that the sample stands for, and no surface's sampling rates shift it.
        """
        taught_CT = self.known_CT * self.present_C[:, None]
        if not population:
            return taught_CT
        weighted_CT = taught_CT * self.weight_C[:, None]
        return weighted_CT * (taught_CT.sum() / weighted_CT.sum().clamp(min=torch.finfo(torch.float32).tiny))


class KnowledgeDistillation:
    """One head for both: ``(1 - share) h(y, label) + share h(y, teacher)``, with h the cross-entropy."""

    class Config(BaseConfig):
        """Attributes: ``share`` of the teacher's prediction in the target, the label's where the teacher is absent;
        ``population``, see :meth:`Lesson.taught_CT`.
        """

        kind: Literal["kd"] = "kd"
        share: float = pydantic.Field(default=0.5, ge=0.0, le=1.0)
        population: bool = False

    def __init__(self, *, config: Config) -> None:
        self.config = config

    def loss(self, logit_CT: Tensor, lesson: Lesson) -> Tensor:
        """Scalar; summed over tasks, a candidate, as in :func:`masked_log_loss`."""
        share = self.config.share
        own_CT = lesson.known_CT * (1 - share * lesson.present_C[:, None])
        taught_CT = share * lesson.taught_CT(population=self.config.population)
        return masked_log_loss(logit_CT, lesson.label_CT, own_CT) + masked_log_loss(
            logit_CT, lesson.teacher_CT.sigmoid(), taught_CT
        )


class StudentAdapter(nn.Module):
    """Corrects the teacher's logits by what fresh labels say: ``logit + MLP(logit)``, the identity at first.

    A teacher's labels are as old as its weights; the adapter learns how far off they have become. It is fitted by an
    optimiser of its own before the student steps, and what it says is a constant to the student.
    """

    class Config(BaseConfig):
        """Attributes: ``hidden``, width of the hidden layer; ``learning_rate`` of AdamW; ``weight`` in the student's
        loss of what the adapter says, beside what the teacher says.
        """

        hidden: int = pydantic.Field(default=16, ge=1)
        learning_rate: float = pydantic.Field(default=5e-3, gt=0)
        weight: float = pydantic.Field(default=1.0, ge=0.0)

    def __init__(self, *, config: Config, tasks: int) -> None:
        super().__init__()
        self.config = config
        self.hidden = nn.Linear(tasks, config.hidden)
        self.output = nn.Linear(config.hidden, tasks)
        normal_start(self.output.weight, 0.0)

    def forward(self, teacher_CT: Tensor) -> Tensor:
        """Corrected logits, float ``[C, T]``."""
        return teacher_CT + self.output(nn.functional.silu(self.hidden(teacher_CT)))


class AdapterLearner:
    """A student adapter and its optimiser."""

    def __init__(self, adapter: StudentAdapter) -> None:
        self.adapter = adapter
        self.optimiser = torch.optim.AdamW(adapter.parameters(), lr=adapter.config.learning_rate, weight_decay=0.0)

    def step(self, lesson: Lesson) -> Tensor:
        """Fit the adapter to the lesson's labels, then say what it makes of the teacher: float ``[C, T]``, detached."""
        said_CT = self.adapter(lesson.teacher_CT)
        loss = masked_log_loss(said_CT, lesson.label_CT, lesson.taught_CT(population=False))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            return self.adapter(lesson.teacher_CT)

    def state_dict(self) -> dict[str, Any]:
        return {"adapter": self.adapter.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adapter.load_state_dict(state["adapter"])
        self.optimiser.load_state_dict(state["optimiser"])


class AuxiliaryHead(nn.Module):
    """A head of its own for the teacher's predictions; the serving head learns from true labels only.

    ``L = h(y_serving, label) + weight h(y_head, clip(label_scale * teacher, <= 1))``, and with an adapter
    ``+ adapter.weight h(y_head, clip(label_scale * adapter(teacher), <= 1))``. What goes back from this head into the
    backbone is ``gradient_scale`` times its gradient. The head exists in training only and costs nothing in serving.
    """

    class Config(BaseConfig):
        """Attributes:

        weight: w, of the teacher's predictions in the loss.
        label_scale: alpha; above 1 it sets rare positives' predictions apart, and is cut to 1 after.
        gradient_scale: beta; 0 leaves the backbone to the true labels.
        adapter: a second target beside the teacher; null for none.
        population: see :meth:`Lesson.taught_CT`.
        """

        kind: Literal["aux_head"] = "aux_head"
        weight: float = pydantic.Field(default=1.0, ge=0.0)
        label_scale: float = pydantic.Field(default=1.0, gt=0.0)
        gradient_scale: float = pydantic.Field(default=1.0, ge=0.0)
        adapter: StudentAdapter.Config | None = None
        population: bool = False

    def __init__(self, *, config: Config, width: int, tasks: int) -> None:
        super().__init__()
        self.config = config
        self.read = nn.Linear(width, tasks)
        normal_start(self.read.weight, 0.01)

    def forward(self, hidden_CH: Tensor) -> Tensor:
        """Float ``[C, T]``."""
        return self.read(scale_gradient(hidden_CH, self.config.gradient_scale))

    def loss(self, distilled_CT: Tensor, lesson: Lesson, adapted_CT: Tensor | None = None) -> Tensor:
        """The weighted terms of the teacher and of the adapter (logits ``adapted_CT``); scalar, as above."""
        config, taught_CT = self.config, lesson.taught_CT(population=self.config.population)

        def term(logit_CT: Tensor) -> Tensor:
            target_CT = scaled_label(logit_CT.detach().sigmoid(), config.label_scale)
            return masked_log_loss(distilled_CT, target_CT, taught_CT)

        loss = config.weight * term(lesson.teacher_CT)
        if config.adapter is not None and adapted_CT is not None:
            loss = loss + config.adapter.weight * term(adapted_CT)
        return loss


def scaled_label(probability_CT: Tensor, scale: float) -> Tensor:
    """``clip(scale * probability, <= 1)``."""
    return (scale * probability_CT).clamp(max=1.0)


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """``x`` itself; its gradient is ``scale`` times what comes back, exactly."""
    return _ScaledGradient.apply(x, scale)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.scale, None
