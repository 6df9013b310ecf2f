"""Eta: which share of the foundation model's own advantage an expert keeps.

``eta = (NE_control - NE_arm) / (NE_control - NE_fm_head)``: 1 is all of it, 0 nothing, and an expert that is better
than its teacher's head has more than 1. After Rec-Distill, where a student's gain is ``eta`` times the gain that
scale gives its teacher, 61 to 73 % of it. All three are judged on the same rows.
"""

import math

from transfer.gain import C2AL, CONTROL, CONTROL_MATCHED, FM_HEAD, TRAINED_ONCE, noise_floor
from transfer.sums import UserSums


def etas(sums: UserSums) -> dict[str, float]:
    """Eta of every arm that learns from the foundation model, means over seeds.

    Empty where it is not defined: the foundation model's head is not ahead of the control by more than the noise floor
    (by anything, where one seed gives no floor), or one of them is missing.
    """
    ne = sums.mean_by_arm("ne")
    advantage = ne.get(CONTROL, math.nan) - ne.get(FM_HEAD, math.nan)
    floor = (noise_floor(sums) or 0.0) / 100 * ne.get(CONTROL, math.nan)
    if not advantage > floor:
        return {}
    return {
        arm: (ne[CONTROL] - value) / advantage
        for arm, value in ne.items()
        if arm not in (CONTROL, CONTROL_MATCHED, C2AL, *TRAINED_ONCE)
    }
