"""Transfer ratio: what of a better teacher's advantage arrives at the expert.

``TR = (NE(E|FM1) - NE(E|FM2)) / (NE(FM1) - NE(FM2))``, FM2 being the larger (Foundation-Expert, arXiv 2508.02929). All
four are judged on the same rows, so the entropy of the base rate cancels and losses stand for NE. The interval is a
bootstrap over users, conditional on the two runs.

Shape legend: G groups of rows by user, A columns.
"""

from dataclasses import dataclass

import numpy as np

from streaming.errors import DataError
from transfer.gain import FM_HEAD, draw_users, noise_floor
from transfer.sums import UserSums


@dataclass(frozen=True, kw_only=True)
class TransferRatio:
    """One ratio; the interval is 95 %.

    Attributes:
        arm: of the expert.
        value, lo, hi: of TR.
        teacher_gain_pct, expert_gain_pct: falls of NE from FM1 to FM2, of the heads and of the experts, in %.
        floors: the teachers' fall in noise floors of the control; a ratio over fewer than 5 says little. None without
            two seeds.
    """

    arm: str
    value: float
    lo: float
    hi: float
    teacher_gain_pct: float
    expert_gain_pct: float
    floors: float | None


def transfer_ratio(
    small: UserSums, large: UserSums, *, arm: str, replicates: int = 2000, seed: int = 0
) -> TransferRatio:
    """TR of ``arm`` between two runs that differ by their foundation models only.

    Args:
        small, large: sums of one surface, or pooled, over the same span of the two runs.
        arm: without logit residual, which would hand the teacher's advantage through.

    Raises:
        DataError: the runs predicted other rows, or one lacks the arm or the teacher's head.
    """
    if not np.array_equal(small.user, large.user) or not np.array_equal(small.rows, large.rows):
        raise DataError("a transfer ratio needs two runs over the same rows; give runs of one data set and span.")
    losses_G4 = np.stack([_loss(small, arm), _loss(large, arm), _loss(small, FM_HEAD), _loss(large, FM_HEAD)], axis=1)
    starts = np.flatnonzero(np.r_[True, small.user[1:] != small.user[:-1]])
    loss_U4 = np.add.reduceat(losses_G4, starts, axis=0)
    random = np.random.default_rng(seed)
    drawn_R4 = np.concatenate([counts @ loss_U4 for counts in draw_users(random, len(loss_U4), replicates)])
    total_4 = loss_U4.sum(axis=0)
    lo, hi = np.quantile(_ratio(drawn_R4), [0.025, 0.975])
    teacher_pct = float(100 * (total_4[2] - total_4[3]) / total_4[2])
    floor = noise_floor(large)
    return TransferRatio(
        arm=arm,
        value=float(_ratio(total_4)),
        lo=float(lo),
        hi=float(hi),
        teacher_gain_pct=teacher_pct,
        expert_gain_pct=float(100 * (total_4[0] - total_4[1]) / total_4[0]),
        floors=teacher_pct / floor if floor else None,
    )


def _ratio(loss: np.ndarray) -> np.ndarray:
    """Of expert and teacher, each with the small and the large model, in the last axis."""
    return (loss[..., 0] - loss[..., 1]) / (loss[..., 2] - loss[..., 3])


def _loss(sums: UserSums, arm: str) -> np.ndarray:
    """Mean over the arm's seeds, ``[G]``."""
    at = [index for index, column in enumerate(sums.columns) if column.arm == arm]
    if not at:
        known = ", ".join(sorted({column.arm for column in sums.columns}))
        raise DataError(f"no arm '{arm}' in these predictions; there are {known}.")
    return sums.loss[:, at].mean(axis=1)
