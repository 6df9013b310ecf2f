"""The comparison of all arms: what each way of transfer is worth on every surface, and against what.

``--work`` is a run folder of the platform, or the folder of three runs of ``configs/platform/complete_journey.yaml``
that differ by the seed of foundation model and experts, ``runs/transfer`` if not given. What is not there is trained,
and LightGBM, where predictions lack it: hours in all. ``--data`` is the data set, the one that the file imports if not
given::

    python -m benchmarks transfer --json transfer.json

Beside each of the three runs stands another over its log, by ``configs/platform/complete_journey_rates.yaml``: one
expert of all surfaces, as LightGBM is, which also reads label rates, as LightGBM does, and trains on earlier windows
again. Its keys come after ``rated.``.

``blended`` is the mean of the trees' logit and the teacher's, not a mode of transfer. Keys, S a surface and A an arm
(``tae_best`` and ``expert_best`` stand for the modes chosen on windows 20-39), over windows 40-53:

========================================= =============================================================================
S.A.ne, S.A.auc                           means over seeds
S.A.gain_pct, _lo, _hi                    fall of NE against ``control`` in %, and its 95 % interval
S.tae_best_vs_X_pct, _lo, _hi             the same against ``matched``, ``kd``, ``aux_head``, ``user_embedding``
S.expert_best_vs_X_pct, _lo, _hi          the same against ``fm_head``, ``lightgbm``
S.fm_head_vs_X_pct, _lo, _hi              the same against ``lightgbm``, ``single_surface``
S.blended_vs_X_pct, _lo, _hi              the same against ``fm_head``, ``lightgbm``
S.lightgbm_treated_vs_lightgbm_pct, ...   where ``hypercast transfer trees --treated`` has added that to the runs
A_vs_X_surfaces_ahead                     on how many surfaces such a gain is clear of 0 and of the noise floor
noise_floor_pct                           the largest gain, over surfaces, between two seeds of ``control``
cold.KEY, unseen.KEY                      all of it over windows 10-24, and over the untouched fifth of the users
rated.KEY                                 all of it of the shared expert with label rates, as far as it has the arms
tae_best_mode, expert_best_mode           what was chosen
seeds, fm_flops_per_candidate, expert_flops_per_candidate
train_seconds, trees_seconds              what was trained by this call took; near 0 if all was there
========================================= =============================================================================

Comparisons with arms that the run has not are absent.
"""

import json
import logging
import time
from pathlib import Path

from benchmarks import study_runs, transfer_bars, transfer_sums
from benchmarks.options import Options, Values
from hypercast.runtime import reference
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.platform import FLOPS_FILE, import_if_absent
from streaming.dataset import Dataset
from transfer import predictions
from transfer.gain import COLD, CONTROL, STEADY, Span
from transfer.monitor import FOUNDATION
from transfer.reference.boosting import LIGHTGBM

CHOOSE = Span("choose", 20, 39)
SEEDS = (0, 1, 2)
WORK = Path("runs/transfer")
_logger = logging.getLogger(__name__)


def measure(options: Options) -> Values:
    """All figures; trains what ``--work`` does not hold yet.

    Raises:
        ConfigError: ``--work`` has a run of another configuration.
        DataError: a folder is no data set, or a run of another one.
    """
    config, work = study_runs.shipped(options.data), options.work or WORK
    dataset = Dataset.open(import_if_absent(config.dataset, _progress))
    begun = time.perf_counter()
    if predictions.surfaces(work):
        runs, rated = [work], []
    else:
        runs = [_finished(config, seed, work=work) for seed in SEEDS]
        rated = [_rated(config, seed, work=work) for seed in SEEDS]
    trained = time.perf_counter()
    _add_trees([*runs, *rated], source=work / reference.REFERENCE / LIGHTGBM)
    values: Values = {"train_seconds": trained - begun, "trees_seconds": time.perf_counter() - trained}
    task, surfaces = dataset.config.tasks[0].name, dataset.config.surfaces
    for prefix, compared in (("", runs), ("rated.", rated)):
        if compared:
            found = figures(compared, task=task, surfaces=surfaces, choose=CHOOSE, steady=STEADY, cold=COLD)
            values |= {f"{prefix}{key}": value for key, value in found.items()}
    return values


def _finished(config: PlatformConfig, seed: int, *, work: Path) -> Path:
    """The folder of the run with that seed, after it has run to its end."""
    return study_runs.run_to_end(_seeded(config, seed, work=work))


def _rated(config: PlatformConfig, seed: int, *, work: Path) -> Path:
    """The folder of the run of the shared expert over the log of the run with that seed, after its end."""
    base = _seeded(config, seed, work=work)
    rates = study_runs.shipped(None, "complete_journey_rates")
    changes = {
        "expert": rates.expert.model_dump(mode="json"),
        "expert_groups": rates.expert_groups,
        # What else was published stays, so that the log can be taken as it is.
        "foundation.publisher.representations": base.publisher().representations,
    }
    return study_runs.finished(
        base, f"{base.run.name}_rated", study_runs.Variant(changes=changes), work=work, source=base.run
    )


def _seeded(config: PlatformConfig, seed: int, *, work: Path) -> PlatformConfig:
    return study_runs.changed(config, {"seeds": [seed], "run": str(work / f"seed{seed}")})


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
    for run in runs:
        reference.add_trees(run, progress=_progress, source=source)


def _progress(message: str, share: float) -> None:
    _logger.info("%s (%.0f %%)", message, 100 * share)


def _flops(run: Path, modes: dict[str, str]) -> Values:
    file = run / FLOPS_FILE
    if not file.is_file():
        return {}
    flops = json.loads(file.read_text(encoding="utf-8"))
    counted = {"fm_flops_per_candidate": flops.get(FOUNDATION)}
    counted["expert_flops_per_candidate"] = flops.get(modes.get(transfer_bars.EXPERT_BEST))
    return {key: value for key, value in counted.items() if value is not None}
