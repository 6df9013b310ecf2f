"""The loss that foundation model and experts share.

Shape legend: C candidates, T tasks.
"""

import torch.nn.functional as F
from torch import Tensor


def masked_log_loss(logit_CT: Tensor, label_CT: Tensor, known_CT: Tensor) -> Tensor:
    """Log loss summed over known labels of all tasks, a candidate: rare tasks weigh as little as they occur."""
    loss_CT = F.binary_cross_entropy_with_logits(logit_CT.float(), label_CT, reduction="none")
    return (loss_CT * known_CT).sum() / len(known_CT)
