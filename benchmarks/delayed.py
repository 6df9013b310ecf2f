"""Policies for labels that come late: on conversions with a known law, and on Complete Journey's coupons.

Everything is prequential: each day (coupons: each week) is predicted whole by what was known at its start. ``--data``
is Complete Journey; without it the coupons are left out. Keys, P a policy:

===================================== =================================================================================
P.ne, P.bias_pct                      generated, days 40 to 59, 14 days' window: normalised entropy against the true
                                      probabilities (``truth.ne`` is the least there is), and how far the predicted rate
                                      is off; means over seeds, with ``_min`` and ``_max``
shift.P.ne, shift.P.bias_pct          the same over the 14 days after rates and a weight have changed
P.window_Dd.error_pct                 windows of D days that no head has: how far the predicted rate is off, days 40 to
                                      59, as a mean of absolute values and the largest over seeds (``_max``)
P.window_Dd.segment_error_pct         the same of the worst segment of users; ``one_curve_error_pct`` with one delay
                                      curve for all
coupons.P.ne, coupons.P.calibration   28 days' window, campaigns from May on whose outcome the log holds
coupons.P.fall_pct, _lo, _hi          fall of NE against ``wait`` in %, 95 % interval over households
coupons.P.window_18d.ne, .calibration a window that no head has
===================================== =================================================================================

Policies: ``instant`` (learns labels at the request, as nobody can), ``wait``, ``wait_whole`` (positives wait too),
``fake_negative``, ``fnw`` and ``fnc`` (its corrections), ``interpolation`` (heads of 1, 3, 7, 14 days),
``interpolation_curve`` (heads of 1 and 3 days, the rest by the delay curve).
"""

import logging

import numpy as np
import torch

from benchmarks.delayed_coupons import WINDOW_DAYS as COUPON_DAYS
from benchmarks.delayed_coupons import evaluated, read_coupons
from benchmarks.delayed_learner import Reading, Recipe, normalised_entropy, prequential
from benchmarks.delayed_world import SCALE_DAYS_S, SHIFT_DAY, WINDOW_DAYS, DelayedWorld
from benchmarks.options import Options, Values
from streaming.dataset import Dataset
from streaming.labels.attribution import DAY, converts
from streaming.labels.delays import DelayCurves
from streaming.labels.policy import FakeNegative, Interpolation, LabelPolicy, Wait

logger = logging.getLogger(__name__)

SEEDS = (0, 1, 2)
STEADY = (40, 60)
LOOKBACK_DAYS = 30.0
UNSEEN_DAYS = (2.0, 5.0, 10.0)
COUPON_UNSEEN_DAYS = (10.0, 18.0)
RESAMPLES = 2000

PLAIN: dict[str, LabelPolicy | None] = {
    "instant": None,
    "wait": Wait(),
    "wait_whole": Wait(early_positives=False),
    "fake_negative": FakeNegative(correction="none"),
    "fnw": FakeNegative(correction="weighted"),
    "fnc": FakeNegative(correction="calibrated"),
}


def measure(options: Options) -> Values:
    threads = torch.get_num_threads()
    # The models are so small that a second thread costs more than it does.
    torch.set_num_threads(1)
    try:
        values = generated()
        if options.data is not None:
            values |= coupons(Dataset.open(options.data))
    finally:
        torch.set_num_threads(threads)
    return values


def generated(*, seeds: tuple[int, ...] = SEEDS, per_day: int | None = None) -> Values:
    """All policies on :class:`DelayedWorld`."""
    policies = PLAIN | {
        "interpolation": Interpolation(),
        "interpolation_curve": Interpolation(windows_days=[1.0, 3.0], tail="curve"),
    }
    found: dict[str, list[float]] = {}
    for seed in seeds:
        world = DelayedWorld.draw(seed) if per_day is None else DelayedWorld.draw(seed, per_day=per_day)
        spans = {"": span(world, *STEADY), "shift.": span(world, SHIFT_DAY + 1, SHIFT_DAY + 1 + WINDOW_DAYS)}
        truth_N = world.within(WINDOW_DAYS * DAY)
        for prefix, rows in spans.items():
            found.setdefault(f"{prefix}truth.ne", []).append(normalised_entropy(truth_N[rows], truth_N[rows]))
        for name, policy in policies.items():
            recipe = Recipe(
                policy=policy, asked_days=UNSEEN_DAYS, curves=DelayCurves.Config(lookback_days=LOOKBACK_DAYS), seed=seed
            )
            said = prequential(world.log, recipe)
            p_N = said[Reading(WINDOW_DAYS)]
            for prefix, rows in spans.items():
                found.setdefault(f"{prefix}{name}.ne", []).append(normalised_entropy(p_N[rows], truth_N[rows]))
                found.setdefault(f"{prefix}{name}.bias_pct", []).append(100 * off(p_N, truth_N, rows))
            if isinstance(policy, Interpolation):
                for key, value in unseen_windows(world, said, spans[""]).items():
                    found.setdefault(f"{name}.{key}", []).append(value)
            logger.info(f"seed {seed}, {name}: NE {found[f'{name}.ne'][-1]:.4f}")
    values: Values = {"seeds": len(seeds), "requests": len(world.log)}
    for key, per_seed in found.items():
        values[key] = round(float(np.mean(per_seed)), 4)
        if "truth" not in key:
            values |= {f"{key}_min": round(min(per_seed), 4), f"{key}_max": round(max(per_seed), 4)}
    return values


def unseen_windows(world: DelayedWorld, said: dict[Reading, np.ndarray], rows: np.ndarray) -> dict[str, float]:
    """How far rates within windows that no head has are off, in %."""
    errors = {}
    for days in UNSEEN_DAYS:
        truth_N = world.within(round(days * DAY))
        segments = [rows & (world.segment_N == segment) for segment in range(len(SCALE_DAYS_S))]
        own, one = (said[Reading(days, personal)] for personal in (True, False))
        key = f"window_{days:g}d"
        errors[f"{key}.error_pct"] = 100 * abs(off(own, truth_N, rows))
        errors[f"{key}.segment_error_pct"] = 100 * max(abs(off(own, truth_N, part)) for part in segments)
        errors[f"{key}.one_curve_error_pct"] = 100 * max(abs(off(one, truth_N, part)) for part in segments)
    return errors


def coupons(dataset: Dataset) -> Values:
    """All policies on coupon campaigns, refitted each week on everything known."""
    log, household_N = read_coupons(dataset)
    policies = PLAIN | {
        "interpolation": Interpolation(windows_days=[7.0, 14.0, 21.0]),
        "interpolation_curve": Interpolation(windows_days=[7.0, 14.0], tail="curve"),
    }
    rows = np.flatnonzero(evaluated(log))
    label_N = log.label_N[rows]
    values: Values = {"coupons.requests": len(rows), "coupons.redeemed": int(label_N.sum())}
    said = {}
    for name, policy in policies.items():
        recipe = Recipe(
            policy=policy,
            asked_days=COUPON_UNSEEN_DAYS,
            curves=DelayCurves.Config(bins=COUPON_DAYS, lookback_days=365.0),
            hidden=0,
            learning_rate=0.05,
            refit_steps=100,
            decay=1e-3,
        )
        found = prequential(log, recipe)
        said[name] = found[Reading(COUPON_DAYS)][rows]
        values |= scored(f"coupons.{name}", said[name], label_N)
        if isinstance(policy, Interpolation):
            for days in COUPON_UNSEEN_DAYS:
                within_N = converts(time_C=log.time_N, conversion_C=log.conversion_N, window=round(days * DAY))[rows]
                values |= scored(f"coupons.{name}.window_{days:g}d", found[Reading(days)][rows], within_N)
    draws = household_draws(household_N[rows])
    for name, p_N in said.items():
        if name == "wait":
            continue
        falls = [100 * (1 - _ne(p_N, label_N, draw) / _ne(said["wait"], label_N, draw)) for draw in draws]
        values[f"coupons.{name}.fall_pct"] = round(falls[0], 2)
        low, high = np.percentile(falls[1:], [2.5, 97.5])
        values |= {f"coupons.{name}.fall_pct_lo": round(low, 2), f"coupons.{name}.fall_pct_hi": round(high, 2)}
    return values


def scored(key: str, p_N: np.ndarray, label_N: np.ndarray) -> Values:
    return {
        f"{key}.ne": round(normalised_entropy(p_N, label_N), 4),
        f"{key}.calibration": round(float(p_N.sum() / label_N.sum()), 4),
    }


def household_draws(household_N: np.ndarray) -> list[np.ndarray]:
    """Rows of the sample itself first, then of resamples of whole households."""
    random = np.random.default_rng([0, 28])
    households, of_N = np.unique(household_N, return_inverse=True)
    counts = random.multinomial(len(households), np.full(len(households), 1 / len(households)), RESAMPLES)
    return [np.arange(len(of_N)), *(np.repeat(np.arange(len(of_N)), count[of_N]) for count in counts)]


def _ne(p_N: np.ndarray, label_N: np.ndarray, draw: np.ndarray) -> float:
    return normalised_entropy(p_N[draw], label_N[draw])


def span(world: DelayedWorld, first: int, end: int) -> np.ndarray:
    """Requests of the days [first, end)."""
    return (world.day_N >= first) & (world.day_N < end)


def off(p_N: np.ndarray, truth_N: np.ndarray, rows: np.ndarray) -> float:
    """How far the predicted rate is from the true one, as a share of it."""
    return float(p_N[rows].sum() / truth_N[rows].sum() - 1)
