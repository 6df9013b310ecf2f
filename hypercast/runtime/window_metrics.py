"""What is logged of one window: metrics of every arm and seed, gains beside their noise floor, eta, coverage and age.

By run key (:mod:`transfer.monitor`); S a surface or ``all_surfaces``, C a cohort of it::

    SURFACE/ARM/seedN    ne  ne_pop  auc  calibration  …  train_loss
    fm                   the same of its own head, with /S behind each
    platform             gain_pct/ARM_vs_OTHER/S  gain_lo/…  gain_hi/…  noise_floor_pct/S  eta/ARM/S
                         gain_pct/ARM_vs_control/S/C …  noise_floor_pct/S/C
                         coverage/…  teacher/age_hours/…  tables/…

These are of the first task. Of every other one there are ``TASK/ne``, ``TASK/auc`` (binned), ``TASK/calibration``,
``TASK/gain_pct/…`` and so on. Everywhere the untouched fifth of the users is left out.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from transfer import cohort, gain, predictions, sums
from transfer.eta import etas
from transfer.evaluate import evaluate
from transfer.gain import CONTROL, FM_HEAD, PAIRS, POOLED, TRAINED_ONCE
from transfer.monitor import FOUNDATION, PLATFORM, expert_key
from transfer.predictions import Column
from transfer.sums import UserSums

Metrics = dict[str, dict[str, float]]
"""Values by run key and metric."""

_NOTED = ("coverage/", "teacher/", "tables/")
_REPLICATES = 200
_FURTHER_TASKS = ("ne", "auc", "calibration")


def of_window(run: Path, *, window: int, tasks: Sequence[str], learned: Mapping[str, Mapping[str, float]]) -> Metrics:
    """Everything that a window's predictions tell.

    Args:
        run: the run folder.
        window: its index.
        tasks: of the data set, in its order.
        learned: what the experts' jobs say of the window, by surface.

    Raises:
        DataError: a prediction table is broken.
    """
    metrics: Metrics = {FOUNDATION: {}, PLATFORM: {}}
    first, *further = tasks
    for surface, said in learned.items():
        table = predictions.read(run, surface=surface, window=window)
        table = table.filter(~sums.is_untouched(table["user_id"].to_numpy()))
        for column, values in evaluate(table, task=first).items():
            _add(metrics, surface, column, values)
            if column.arm != FM_HEAD:
                loss = said.get(f"{column.arm}.seed{column.seed}/train_loss", math.nan)
                metrics[expert_key(surface, column.arm, column.seed)]["train_loss"] = loss
        metrics[PLATFORM] |= {f"{name}/{surface}": value for name, value in said.items() if name.startswith(_NOTED)}
        for name, each in cohort.of_windows(run, surface=surface, windows=[window], task=first).items():
            metrics[PLATFORM] |= _of_cohort(each.select(untouched=False), f"{plain(surface)}/{plain(name)}")
    metrics[PLATFORM] |= _compared(_seen(run, window, task=first, surfaces=learned))
    for task in further:
        seen = _seen(run, window, task=task, surfaces=learned)
        for surface, each in seen.items():
            for column, values in each.metrics().items():
                told = {name: values[name] for name in _FURTHER_TASKS if math.isfinite(values[name])}
                _add(metrics, surface, column, {f"{plain(task)}/{name}": value for name, value in told.items()})
        metrics[PLATFORM] |= {f"{plain(task)}/{name}": value for name, value in _compared(seen).items()}
    return metrics


def _seen(run: Path, window: int, *, task: str, surfaces: Mapping[str, object]) -> dict[str, UserSums]:
    """Sums by surface, the untouched fifth of the users left out."""
    return {
        surface: sums.of_window(run, surface=surface, window=window, task=task).select(untouched=False)
        for surface in surfaces
    }


def _add(metrics: Metrics, surface: str, column: Column, values: Mapping[str, float]) -> None:
    """To the run of the arm, or to the foundation model's where its own head has predicted."""
    if column.arm == FM_HEAD:
        metrics[FOUNDATION] |= {f"{name}/{surface}": value for name, value in values.items()}
    else:
        metrics.setdefault(expert_key(surface, column.arm, column.seed), {}).update(values)


def _compared(seen: Mapping[str, UserSums]) -> dict[str, float]:
    """Gains, noise floors and eta of every surface and of all together."""
    values: dict[str, float] = {}
    for surface, each in {**seen, POOLED: gain.pooled(seen)}.items():
        place = plain(surface)
        values |= _gains(each, PAIRS, place)
        values |= {f"eta/{arm}/{place}": eta for arm, eta in etas(each).items()}
    return values


def _of_cohort(each: UserSums, place: str) -> dict[str, float]:
    arms = dict.fromkeys(column.arm for column in each.columns)
    return _gains(each, [(arm, CONTROL) for arm in arms if arm not in (CONTROL, *TRAINED_ONCE)], place)


def _gains(each: UserSums, pairs: Sequence[tuple[str, str]], place: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for one in gain.gains(each, surface=place, span="window", pairs=pairs, replicates=_REPLICATES):
        key = f"{one.arm}_vs_{one.against}/{place}"
        values |= {f"gain_pct/{key}": one.gain_pct, f"gain_lo/{key}": one.lo, f"gain_hi/{key}": one.hi}
    if (floor := gain.noise_floor(each)) is not None:
        values[f"noise_floor_pct/{place}"] = floor
    return values


def plain(name: str) -> str:
    """As part of a metric's name, which MLflow wants of letters, digits and a few signs."""
    return re.sub(r"[^\w.:-]", "_", name)
