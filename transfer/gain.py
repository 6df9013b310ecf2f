"""Transfer gain: how much lower an arm's normalised entropy is than its control's, with an honest interval.

``gain_pct = 100 * (NE_control - NE_arm) / NE_control``: positive is better. Both arms are judged on the same rows, so
the entropy of the base rate cancels and the gain is a ratio of summed log losses.

The interval is a paired, hierarchical bootstrap: users are drawn with replacement, because the rows of one user are
not independent, and the experts' seeds are drawn with replacement, because one training run is not the method. It is
conditional on the one foundation model that all of them read, and with two seeds it holds half of their variance.
A reference that was trained once (:data:`TRAINED_ONCE`) is paired with every seed of the other arm: the interval then
holds the variance over users and over the experts' seeds, and not what another training of the reference would change.
Between two such references it holds that of users alone. Beside it stands the noise floor: the gain between two control
arms that differ by their seed only.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from transfer.metric import normalised_entropy
from transfer.predictions import Column
from transfer.sums import UserSums, combine

CONTROL = "control"
CONTROL_MATCHED = "control_matched"
TAE = "tae"
LOGIT_RESIDUAL = "logit_residual"
TREATED = "treated"
KD = "kd"
AUX_HEAD = "aux_head"
AUX_HEAD_ADAPTER = "aux_head_adapter"
USER_EMBEDDING = "user_embedding"
TAE_SEQUENCE = "tae_sequence"
TAE_CONCAT = "tae_concat"
TAE_CROSS_ATTENTION = "tae_cross_attention"
TAE_AUX_HEAD_ADAPTER = "tae_aux_head_adapter"
TAE_KD = "tae_kd"
TAE_HISTORY = "tae_history"
C2AL = "c2al"
TAE_C2AL = "tae_c2al"
FINETUNE = "finetune"
BLENDED = "blended"
LIGHTGBM = "lightgbm"
LIGHTGBM_TREATED = "lightgbm_treated"
"""Boosted trees that read the foundation model's logit."""
FM_HEAD = "fm_head"
FM_SINGLE_SURFACE = "fm_single_surface"
"""The head of a foundation model that was trained on the surface alone."""

TRAINED_ONCE = (LIGHTGBM, LIGHTGBM_TREATED, FM_SINGLE_SURFACE, FM_HEAD, BLENDED)
"""References that experts' seeds do not change."""

POOLED = "all surfaces"
"""Name of the row over the rows of every surface."""

_USUAL = (TREATED, TAE, LOGIT_RESIDUAL)
_FURTHER = (
    KD,
    AUX_HEAD,
    AUX_HEAD_ADAPTER,
    USER_EMBEDDING,
    TAE_SEQUENCE,
    TAE_CONCAT,
    TAE_CROSS_ATTENTION,
    TAE_AUX_HEAD_ADAPTER,
    TAE_KD,
    TAE_HISTORY,
    C2AL,
    TAE_C2AL,
    BLENDED,
    LIGHTGBM_TREATED,
    FINETUNE,
)
PAIRS: tuple[tuple[str, str], ...] = (
    *((arm, against) for arms in (_USUAL, _FURTHER) for against in (CONTROL, CONTROL_MATCHED) for arm in arms),
    (FM_HEAD, FM_SINGLE_SURFACE),
    *((arm, CONTROL) for arm in (CONTROL_MATCHED, LIGHTGBM, FM_SINGLE_SURFACE, FM_HEAD)),
    *((arm, LIGHTGBM) for arm in (TREATED, TAE_AUX_HEAD_ADAPTER, BLENDED, LIGHTGBM_TREATED, FM_HEAD)),
    *((LIGHTGBM_TREATED, against) for against in (BLENDED, FM_HEAD)),
)
"""The comparisons made by default, where both arms ran: (arm, against)."""

ARMS = (CONTROL, CONTROL_MATCHED, LIGHTGBM, FM_SINGLE_SURFACE, FM_HEAD, *_USUAL, *_FURTHER)
"""Every arm, references first: the order in which they are shown."""

_CHUNK = 1 << 22  # drawn users held at once


@dataclass(frozen=True)
class Span:
    """Windows ``first`` to ``last``, both included."""

    name: str
    first: int
    last: int

    def __contains__(self, window: int) -> bool:
        return self.first <= window <= self.last


COLD = Span("cold", 10, 24)
STEADY = Span("steady", 40, 53)


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One comparison. NE are means over the seeds that are paired; percentages are in %; the interval is 95 %.

    ``seeds``: pairs that were compared.
    """

    surface: str
    span: str
    arm: str
    against: str
    ne_control: float
    ne_arm: float
    gain_pct: float
    lo: float
    hi: float
    noise_floor_pct: float | None
    users: int
    rows: int
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of no gain."""
        return self.lo > 0 or self.hi < 0

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``none``: also where a gain clears zero but not the noise floor."""
        if not self.excludes_zero or abs(self.gain_pct) <= (self.noise_floor_pct or 0.0):
            return "none"
        return "better" if self.gain_pct > 0 else "worse"


def gains(
    sums: UserSums,
    *,
    surface: str,
    span: str,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    replicates: int = 2000,
    seed: int = 0,
) -> list[Gain]:
    """Gains with intervals from sums over the rows to compare on.

    Args:
        sums: of one surface (or :func:`pooled`), added up over the windows of a span, the untouched fifth left out.
        surface: a label for the result.
        span: likewise.
        pairs: (arm, against); a pair is left out when no seed has both arms.
        replicates: bootstrap draws.
        seed: of the bootstrap.

    Returns:
        One :class:`Gain` per pair, in the order of ``pairs``; empty where NE is not defined (no rows, one class only).
    """
    # Users are the unit of resampling: their tagged and untagged rows stay together.
    starts = np.flatnonzero(np.r_[True, sums.user[1:] != sums.user[:-1]]) if len(sums.user) else np.empty(0, dtype=int)
    rows, positives = float(sums.rows.sum()), float(sums.positives.sum())
    paired = {pair: _paired_columns(sums, *pair) for pair in pairs}
    paired = {pair: at for pair, at in paired.items() if len(at[0])}
    if not paired or not 0 < positives < rows:
        return []
    loss = np.add.reduceat(sums.loss, starts, axis=0)
    total = loss.sum(axis=0)
    random = np.random.default_rng(seed)
    drawn = np.concatenate([counts @ loss for counts in draw_users(random, len(loss), replicates)])
    floor = noise_floor(sums)
    result = []
    for (arm, against), (at_arm, at_against) in paired.items():
        picked = random.integers(0, len(at_arm), size=(replicates, len(at_arm)))
        arm_loss = np.take_along_axis(drawn[:, at_arm], picked, axis=1).sum(axis=1)
        against_loss = np.take_along_axis(drawn[:, at_against], picked, axis=1).sum(axis=1)
        lo, hi = np.quantile(_gain_pct(arm_loss, against_loss), [0.025, 0.975])
        result.append(
            Gain(
                surface=surface,
                span=span,
                arm=arm,
                against=against,
                ne_control=normalised_entropy.from_sums(
                    loss=float(total[at_against].mean()), positives=positives, rows=rows
                ),
                ne_arm=normalised_entropy.from_sums(loss=float(total[at_arm].mean()), positives=positives, rows=rows),
                gain_pct=float(_gain_pct(total[at_arm].sum(), total[at_against].sum())),
                lo=float(lo),
                hi=float(hi),
                noise_floor_pct=floor,
                users=len(starts),
                rows=int(rows),
                seeds=len(at_arm),
            )
        )
    return result


def noise_floor(sums: UserSums, *, arm: str = CONTROL) -> float | None:
    """Largest absolute gain in % between two seeds of ``arm``; None with fewer than two seeds."""
    total = [sums.loss[:, a].sum() for a, column in enumerate(sums.columns) if column.arm == arm]
    between = [float(abs(_gain_pct(one, other))) for one, other in itertools.combinations(total, 2) if other > 0]
    return max(between, default=None)


def pooled(by_surface: Mapping[str, UserSums]) -> UserSums:
    """Sums over the rows of every surface, over the columns that all of them have."""
    return combine(by_surface.values())


def _gain_pct(arm_loss: np.ndarray, against_loss: np.ndarray) -> np.ndarray:
    return 100.0 * (against_loss - arm_loss) / against_loss


def paired_under(columns: Sequence[Column]) -> list[tuple[Column, int]]:
    """Every column and the seed that it is paired under: its own, but every expert's seed for a reference that there is
    once (:data:`TRAINED_ONCE`).
    """
    count = Counter(column.arm for column in columns)
    seeds = sorted({column.seed for column in columns if column.arm not in TRAINED_ONCE}) or [0]
    under: list[tuple[Column, int]] = []
    for column in columns:
        once = column.arm in TRAINED_ONCE and count[column.arm] == 1
        under += [(column, seed) for seed in (seeds if once else [column.seed])]
    return under


def _paired_columns(sums: UserSums, arm: str, against: str) -> tuple[list[int], list[int]]:
    """Places of both arms' columns, by the seeds that both have: these share data order and initial values."""
    place = {column: a for a, column in enumerate(sums.columns)}
    under = paired_under(sums.columns)
    of_arm, of_against = ({seed: place[c] for c, seed in under if c.arm == name} for name in (arm, against))
    common = sorted(of_arm.keys() & of_against.keys())
    both = dict.fromkeys((of_arm[seed], of_against[seed]) for seed in common)  # two references are one pair
    return [at for at, _ in both], [at for _, at in both]


def draw_users(random: np.random.Generator, users: int, replicates: int) -> Iterator[np.ndarray]:
    """How often each user is drawn, float64 [replicates, users] in chunks of bounded size: multinomial counts."""
    chunk = max(1, min(replicates, _CHUNK // users))
    for begin in range(0, replicates, chunk):
        size = min(chunk, replicates - begin)
        drawn = random.integers(0, users, size=(size, users), dtype=np.int64)
        drawn += np.arange(size, dtype=np.int64)[:, None] * users
        yield np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users).astype(np.float64)
