"""Learning from labels that come late, and reading any window from heads of fixed ones.

What :class:`streaming.labels.plan.LabelPlan` decides about examples, this does about losses and logits. It has no
parameters: any model with one logit a head can use it.

Shape legend: C candidates, H heads, T tasks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.hstu.loss import masked_log_loss
from streaming.labels.asked import AskedWindows
from streaming.labels.plan import LabelPlan

FLOOR, CEILING = 1e-12, 1 - 1e-6
"""Between them lies every probability that is made of others: a stretched one, or one read from fake negatives."""


class DelayedHeads:
    """Loss and readout of a plan's heads."""

    def __init__(self, plan: LabelPlan) -> None:
        self.plan = plan
        self._fake_H = torch.tensor([head.fake_negatives for head in plan.heads])
        self._weighted_H = torch.tensor([head.correction == "weighted" for head in plan.heads])
        self._of_task_HT = torch.tensor([[float(head.task == task.name) for task in plan.tasks] for head in plan.heads])
        self._calibrated_H = torch.tensor([head.correction == "calibrated" for head in plan.heads])
        self._bucket_H = torch.tensor([head.end > 0 for head in plan.heads])
        self._bucketed_T = (self._bucket_H.float() @ self._of_task_HT) > 0

    def loss(self, logit_CH: Tensor, label_CH: Tensor, known_CH: Tensor) -> Tensor:
        """Log loss over known labels, summed over heads, a candidate, as :func:`masked_log_loss`.

        Where a head has fake negatives, a label says which examples there are (:meth:`LabelPlan.taught`), and they
        count as :class:`streaming.labels.policy.FakeNegative` says. Their weights have no gradient.
        """
        if not self._fake_H.any():
            return masked_log_loss(logit_CH, label_CH, known_CH)
        logit_CH = logit_CH.float()
        p_CH = logit_CH.detach().sigmoid()
        positive_CH = (label_CH > 0) * torch.where(self._weighted_H, 1 + p_CH, 1.0)
        negative_CH = (label_CH < 1) * torch.where(self._weighted_H, (1 - p_CH) * (1 + p_CH), 1.0)
        loss_CH = positive_CH * F.softplus(-logit_CH) + negative_CH * F.softplus(logit_CH)
        return (loss_CH * known_CH).sum() / len(known_CH)

    def probability(self, p_CH: Tensor, asked: AskedWindows) -> Tensor:
        """One probability a task from those of its heads, ``[C, T]``; as given where every head is a task's own."""
        if not (self._bucket_H.any() or self._calibrated_H.any()):
            return p_CH
        return self.read(_logit_of(p_CH), asked).sigmoid()

    def read(self, logit_CH: Tensor, asked: AskedWindows) -> Tensor:
        """One logit a task from those of its heads, float32 ``[C, T]``.

        Args:
            logit_CH: as the model says them.
            asked: the window that each task is read for (:func:`streaming.labels.asked.ask`).
        """
        logit_CH = logit_CH.float()
        # log p / (1 - p) where p / (1 + p) = b, that is p = exp(logit of b).
        calibrated_CH = _logit_of(logit_CH.clamp(max=0.0).exp())
        whole_CH = torch.where(self._calibrated_H, calibrated_CH, logit_CH)
        whole_CT = torch.where(self._bucket_H, 0.0, whole_CH) @ self._of_task_HT
        # Of a bucket's hazard h the part r comes within the window. Who survives every bucket has not converted.
        within_CH = torch.from_numpy(asked.within_CH)
        survival_CH = torch.log1p(-(logit_CH.sigmoid() * within_CH).clamp(max=CEILING))
        converts_CT = -torch.expm1(torch.where(self._bucket_H, survival_CH, 0.0) @ self._of_task_HT)
        return torch.where(self._bucketed_T, _logit_of(converts_CT * torch.from_numpy(asked.stretch_CT)), whole_CT)


def _logit_of(p: Tensor) -> Tensor:
    p = p.clamp(min=FLOOR, max=CEILING)
    return torch.log(p) - torch.log1p(-p)
