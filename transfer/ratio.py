"""Transfer ratio: what of a better teacher's advantage arrives at the expert.

``TR = (NE(E|FM1) - NE(E|FM2)) / (NE(FM1) - NE(FM2))``, FM2 being the larger (Foundation-Expert, arXiv 2508.02929). All
four are judged on the same rows, so the entropy of the base rate cancels and losses stand for NE. The interval is a
paired bootstrap over users and over seeds, which both runs and experts and teachers share (:mod:`transfer.gain`); where
each run has one teacher, it is conditional on the two.

Shape legend: G groups of rows by user, U users, S seeds, R draws; 4: expert and teacher, each small and large.
"""

from dataclasses import dataclass

import numpy as np

from streaming.errors import DataError
from transfer.gain import FM_HEAD, draw_users, noise_floor, paired_under
from transfer.sums import UserSums


@dataclass(frozen=True, kw_only=True)
class TransferRatio:
    """One ratio; the interval is 95 %. It is None where that of the teachers' fall holds 0: a ratio over what may be
    nothing is not defined.

    Attributes:
        arm: of the expert.
        value, lo, hi: of TR.
        teacher_gain_pct, expert_gain_pct: falls of NE from FM1 to FM2, of the heads and of the experts, in %.
        floors: the teachers' fall in noise floors of the control; a ratio over fewer than 5 says little. None without
            two seeds.
    """

    arm: str
    value: float
    lo: float | None
    hi: float | None
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
        DataError: the runs predicted other rows, have no seed in common, or one lacks the arm or the teacher's head.
    """
    if not np.array_equal(small.user, large.user) or not np.array_equal(small.rows, large.rows):
        raise DataError("a transfer ratio needs two runs over the same rows; give runs of one data set and span.")
    named = [(small, arm), (large, arm), (small, FM_HEAD), (large, FM_HEAD)]
    loss_G_by_seed = [_loss(each, name) for each, name in named]
    seeds = sorted(set.intersection(*(set(of_seed) for of_seed in loss_G_by_seed)))
    if not seeds:
        raise DataError(f"a transfer ratio needs two runs with a common seed of '{arm}' and of {FM_HEAD}.")
    loss_GS4 = np.stack([[of_seed[each] for of_seed in loss_G_by_seed] for each in seeds]).transpose(2, 0, 1)
    starts = np.flatnonzero(np.r_[True, small.user[1:] != small.user[:-1]])
    loss_US4 = np.add.reduceat(loss_GS4, starts, axis=0)
    total_4 = loss_US4.sum(axis=(0, 1))
    random = np.random.default_rng(seed)
    flat = loss_US4.reshape(len(loss_US4), -1)
    drawn_RS4 = np.concatenate([counts @ flat for counts in draw_users(random, len(flat), replicates)])
    drawn_RS4 = drawn_RS4.reshape(replicates, len(seeds), 4)
    picked_RS = random.integers(0, len(seeds), size=(replicates, len(seeds)))
    drawn_R4 = np.take_along_axis(drawn_RS4, picked_RS[:, :, None], axis=1).sum(axis=1)
    fall_lo, fall_hi = np.quantile(drawn_R4[:, 2] - drawn_R4[:, 3], [0.025, 0.975])
    lo = hi = None
    if fall_lo > 0 or fall_hi < 0:
        lo, hi = (float(bound) for bound in np.quantile(_ratio(drawn_R4), [0.025, 0.975]))
    teacher_pct = float(100 * (total_4[2] - total_4[3]) / total_4[2])
    floor = noise_floor(large)
    return TransferRatio(
        arm=arm,
        value=float(_ratio(total_4)),
        lo=lo,
        hi=hi,
        teacher_gain_pct=teacher_pct,
        expert_gain_pct=float(100 * (total_4[0] - total_4[1]) / total_4[0]),
        floors=teacher_pct / floor if floor else None,
    )


def _ratio(loss: np.ndarray) -> np.ndarray:
    """Of expert and teacher, each with the small and the large model, in the last axis."""
    return (loss[..., 0] - loss[..., 1]) / (loss[..., 2] - loss[..., 3])


def _loss(sums: UserSums, arm: str) -> dict[int, np.ndarray]:
    """Of the arm, ``[G]`` by the seed that it is paired under."""
    place = {column: a for a, column in enumerate(sums.columns)}
    of_seed = {seed: sums.loss[:, place[column]] for column, seed in paired_under(sums.columns) if column.arm == arm}
    if not of_seed:
        known = ", ".join(sorted({column.arm for column in sums.columns}))
        raise DataError(f"no arm '{arm}' in these predictions; there are {known}.")
    return of_seed
