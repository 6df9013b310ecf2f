"""What transfer depends on: staleness, coverage, codec, width, backbone, and how good the teacher is.

``--work`` is the folder of the runs, ``runs/studies`` if not given: one platform run a variant of
``configs/platform/complete_journey.yaml``, resumed where it was stopped; ``--data`` is the data set, the one that the
file imports if not given. All together train for hours. Figures are pooled over surfaces, windows
40-53, users to develop on; the expert is ``tae_aux_head_adapter``, which adds no logit of the teacher's. A variant's
control is the base's, which reads nothing of the teacher; backbones have their own. ``hypercast transfer report
--html PAGE --studies FILE`` draws the figures.

=================================== ===================================================================================
VARIANT.gain_pct, _lo, _hi          fall of NE against the control, in %
VARIANT.ne, VARIANT.fm_ne           of expert and teacher (the latter not for ``coverage_N``)
VARIANT.fm_flops_per_candidate
staleness_N                         teacher N windows behind (``base``: not at all)
coverage_N                          only N % of the examples have a row in the log
codec_C                             vectors in the log in codec C (``base.codec``)
width_N                             embedding of N numbers (``base.width``)
dcn, dhen, gesr                     backbones; the base has an MLP
modes.MODE                          modes of transfer that the platform file has not, of one seed
size_N                              foundation models of width N, by which compute changes
tr_N_M, _lo, _hi                    transfer ratio between sizes, the smaller of a quarter of the compute or more; its
                                    interval is absent where the teachers' fall may be 0
tr_N_M_floors                       the teachers' fall in noise floors
power_exponent, power_r2            fit of log expert NE on log compute over sizes
noise_floor_pct
=================================== ===================================================================================
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks import transfer_sums
from benchmarks.options import Options, Values
from benchmarks.study_runs import BASE, Variant, changed, finished, shipped
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.platform import FLOPS_FILE, import_if_absent
from hypercast.store.status import DAY
from streaming.dataset import Dataset
from transfer import gain, ratio
from transfer.gain import (
    C2AL,
    CONTROL,
    FINETUNE,
    FM_HEAD,
    LOGIT_RESIDUAL,
    POOLED,
    STEADY,
    TAE,
    TAE_AUX_HEAD_ADAPTER,
    TAE_C2AL,
    TAE_CONCAT,
    TAE_CROSS_ATTENTION,
    TAE_HISTORY,
    TAE_KD,
    TAE_SEQUENCE,
    Span,
)
from transfer.monitor import FOUNDATION
from transfer.sums import UserSums

WORK = Path("runs/studies")
ARM = TAE_AUX_HEAD_ADAPTER
LEAST_SHARE = 0.25
"""Of the larger teacher's compute, for a transfer ratio between two."""

WEEK = 7 * DAY
STALENESS = {
    f"staleness_{delay}": Variant(
        # What a study asks for does not expire: a row is at most `delay + 1` weeks old.
        changes={"expert.teacher_delay_windows": delay, "log.ttl": max(60 * DAY, (delay + 1) * WEEK)}
    )
    for delay in (1, 2, 4, 8)
}
COVERAGE = {f"coverage_{percent}": Variant(coverage=percent / 100) for percent in (25, 50, 75)}
CODEC = {f"codec_{codec}": Variant(changes={"foundation.publisher.dtype": codec}) for codec in ("int8", "int4")}
WIDTH = {f"width_{width}": Variant(changes={"foundation.model.representation": width}) for width in (16, 32, 128)}
SIZE = {
    f"size_{width}": Variant(changes={"foundation.model.width": width, "foundation.model.tower": 4 * width})
    for width in (16, 24, 40, 96)
}
BACKBONE = {
    kind: Variant(changes={"expert.model.backbone": {"kind": kind}, "expert.arms": [CONTROL, ARM]})
    for kind in ("dcn", "dhen", "gesr")
}
MODES = {
    "modes": Variant(
        changes={
            "expert.arms": [
                *(TAE, TAE_SEQUENCE, TAE_CONCAT, TAE_CROSS_ATTENTION, TAE_HISTORY, TAE_KD),
                *(LOGIT_RESIDUAL, C2AL, TAE_C2AL, FINETUNE),
            ],
            "seeds": [0],
        }
    )
}
"""Those that the platform file has not."""
STUDIES: dict[str, Variant] = {**STALENESS, **COVERAGE, **CODEC, **MODES, **BACKBONE, **WIDTH, **SIZE}


def measure(options: Options) -> Values:
    """All figures; trains whatever ``--work`` does not hold yet."""
    base = shipped(options.data)
    import_if_absent(base.dataset, lambda message, share: None)
    return studies(base, STUDIES, work=options.work or WORK, span=STEADY)


def studies(base: PlatformConfig, variants: Mapping[str, Variant], *, work: Path, span: Span) -> Values:
    """Figures of ``base`` and its ``variants``."""
    dataset = Dataset.open(base.dataset.path)
    task = dataset.config.tasks[0].name
    every_snapshot = {"foundation.publisher.keep": len(dataset.windows) + 1}
    alone = changed(base, {**every_snapshot, "expert.arms": [ARM]})
    started = Variant(changes={"expert.arms": [CONTROL, ARM]})
    sums: dict[str, UserSums] = {}
    flops: dict[str, float] = {}
    for name, variant in {BASE: started, **variants}.items():
        run = finished(alone, name, variant, work=work)
        by_surface = {
            surface: transfer_sums.read([run], surface=surface, span=span, task=task, untouched=False)
            for surface in dataset.config.surfaces
        }
        sums[name] = _with_control(name, gain.pooled(by_surface), sums.get(BASE))
        flops[name] = json.loads((run / FLOPS_FILE).read_text(encoding="utf-8"))[FOUNDATION]
    sizes = sorted([BASE, *(name for name in variants if name in SIZE)], key=lambda name: flops[name])
    model, how = base.foundation.model, base.publisher()
    values: Values = {"seeds": len(base.seeds), "base.width": model.representation, "base.codec": how.dtype}
    for name, each in sums.items():
        values |= _figures(name, each) | {f"{name}.fm_flops_per_candidate": flops[name]}
    if (floor := gain.noise_floor(sums[BASE])) is not None:
        values["noise_floor_pct"] = floor
    return values | _ratios(sums, flops, sizes) | _power_law(sums, flops, sizes)


def _with_control(name: str, sums: UserSums, base: UserSums | None) -> UserSums:
    """With the control of the base where the run has none of its own."""
    if base is None or any(column.arm == CONTROL for column in sums.columns):
        return sums
    control = base.only([column for column in base.columns if column.arm == CONTROL])
    return transfer_sums.joined({name: sums, BASE: control})


def _figures(name: str, sums: UserSums) -> Values:
    values: Values = {}
    if name not in COVERAGE:  # there the head is judged where the log has no row, too
        values[f"{name}.fm_ne"] = sums.mean_by_arm("ne")[FM_HEAD]
    arms = sorted({column.arm for column in sums.columns} - {CONTROL, FM_HEAD})
    for one in gain.gains(sums, surface=POOLED, span=name, pairs=[(arm, CONTROL) for arm in arms]):
        key = name if arms == [ARM] else f"{name}.{one.arm}"
        said = {"gain_pct": one.gain_pct, "gain_lo": one.lo, "gain_hi": one.hi, "ne": one.ne_arm}
        values |= {f"{key}.{figure}": value for figure, value in said.items()}
    return values


def _ratios(sums: dict[str, UserSums], flops: dict[str, float], sizes: list[str]) -> Values:
    values: Values = {}
    for small, large in itertools.combinations(sizes, 2):
        if flops[small] < LEAST_SHARE * flops[large]:
            continue
        found, key = ratio.transfer_ratio(sums[small], sums[large], arm=ARM), f"tr_{small}_{large}"
        values[key] = found.value
        if found.lo is not None and found.hi is not None:
            values |= {f"{key}_lo": found.lo, f"{key}_hi": found.hi}
        if found.floors is not None:
            values[f"{key}_floors"] = found.floors
    return values


def _power_law(sums: dict[str, UserSums], flops: dict[str, float], sizes: list[str]) -> Values:
    """``NE = a * compute ** exponent`` by least squares in logarithms; absent for fewer than three sizes."""
    if len(sizes) < 3:
        return {}
    x = np.log([flops[name] for name in sizes])
    y = np.log([sums[name].mean_by_arm("ne")[ARM] for name in sizes])
    exponent, level = np.polyfit(x, y, 1)
    left = y - (exponent * x + level)
    spread = float(((y - y.mean()) ** 2).sum())
    return {"power_exponent": float(exponent), "power_r2": 1 - float((left**2).sum()) / spread if spread else 0.0}
