"""The arms of a finished comparison: what each way of transfer is worth on every surface, and against what.

``--data`` is the data set, ``--work`` a run folder of the platform, or a folder of several that differ by their seeds::

    python -m benchmarks transfer --data data/complete_journey --work runs/complete_journey --json transfer.json

LightGBM is trained here where predictions lack it; ``blended`` is its mean with each run's teacher. Keys, S a surface
and A an arm (``tae_best`` and ``expert_best`` stand for the modes chosen on windows 20-39), over windows 40-53:

========================================= =============================================================================
S.A.ne, S.A.auc                           means over seeds
S.A.gain_pct, _lo, _hi                    fall of NE against ``control`` in %, and its 95 % interval
S.tae_best_vs_X_pct, _lo, _hi             the same against ``matched``, ``kd``, ``aux_head``, ``user_embedding``
S.expert_best_vs_X_pct, _lo, _hi          the same against ``fm_head``, ``lightgbm``
S.fm_head_vs_X_pct, _lo, _hi              the same against ``lightgbm``, ``single_surface``
A_vs_X_surfaces_ahead                     on how many surfaces such an interval lies above 0
noise_floor_pct                           the largest gain, over surfaces, between two seeds of ``control``
cold.KEY, unseen.KEY                      all of it over windows 10-24, and over the untouched fifth of the users
tae_best_mode, expert_best_mode           what was chosen
seeds, fm_flops_per_candidate, expert_flops_per_candidate
========================================= =============================================================================

Comparisons with arms that the run has not are absent.
"""

import json
import logging
from pathlib import Path

from benchmarks import transfer_bars, transfer_sums
from benchmarks.options import Options, Values
from hypercast.runtime import reference
from streaming.dataset import Dataset
from streaming.errors import ConfigError
from transfer.gain import COLD, CONTROL, STEADY, Span
from transfer.monitor import FOUNDATION
from transfer.reference.boosting import LIGHTGBM

CHOOSE = Span("choose", 20, 39)
FLOPS_FILE = "flops_per_candidate.json"
_logger = logging.getLogger(__name__)


def measure(options: Options) -> Values:
    """All figures.

    Raises:
        ConfigError: ``--data`` or ``--work`` is not given.
        DataError: a folder is no data set, no run, or a run of another data set.
    """
    if options.data is None or options.work is None:
        raise ConfigError(
            "transfer reads a finished run: give --data DATASET and --work RUN, for example "
            "--data data/complete_journey --work runs/complete_journey"
        )
    dataset = Dataset.open(options.data)
    runs = transfer_sums.runs_in(options.work)
    task = dataset.config.tasks[0].name
    _add_trees(runs, source=options.work / reference.REFERENCE / LIGHTGBM)
    return figures(runs, task=task, surfaces=dataset.config.surfaces, choose=CHOOSE, steady=STEADY, cold=COLD)


def figures(
    runs: list[Path],
    *,
    task: str,
    surfaces: list[str],
    choose: Span,
    steady: Span,
    cold: Span,
    replicates: int = transfer_bars.REPLICATES,
) -> Values:
    """The figures of finished runs that have all their arms."""

    def read(span: Span, *, untouched: bool = False) -> transfer_bars.BySurface:
        return {
            surface: transfer_sums.read(runs, surface=surface, span=span, task=task, untouched=untouched)
            for surface in surfaces
        }

    chosen_on = read(choose)
    modes = transfer_bars.choose(chosen_on)
    seeds = {column.seed for each in chosen_on.values() for column in each.columns if column.arm == CONTROL}
    values: Values = {f"{name}_mode": mode for name, mode in modes.items()}
    values["seeds"] = len(seeds)
    for prefix, by_surface in (
        ("", read(steady)),
        ("cold.", read(cold)),
        ("unseen.", read(steady, untouched=True)),
    ):
        values |= transfer_bars.figures(by_surface, modes=modes, prefix=prefix, replicates=replicates)
    return values | _flops(runs[0], modes)


def _add_trees(runs: list[Path], *, source: Path) -> None:
    """LightGBM once for all runs, as it does not depend on them, and its mean with each run's teacher."""

    def progress(message: str, share: float) -> None:
        _logger.info("%s (%.0f %%)", message, 100 * share)

    for run in runs:
        reference.add_trees(run, progress=progress, source=source)


def _flops(run: Path, modes: dict[str, str]) -> Values:
    file = run / FLOPS_FILE
    if not file.is_file():
        return {}
    flops = json.loads(file.read_text(encoding="utf-8"))
    counted = {"fm_flops_per_candidate": flops.get(FOUNDATION)}
    counted["expert_flops_per_candidate"] = flops.get(modes.get(transfer_bars.EXPERT_BEST))
    return {key: value for key, value in counted.items() if value is not None}
