"""Speculation: how much of what is asked for was computed before, and what that is worth to experts.

``--data`` is the data set, ``--work`` a folder that keeps what was trained (otherwise a temporary one)::

    python -m benchmarks solaris --data data/complete_journey_demo --work runs/solaris --json solaris.json

At the start of every window the newest snapshot of the foundation model scores the pairs of user, item and surface that
are the most likely to be asked for in it. B % of the budget is as many pairs as B % of the candidates that were asked
for in a window, in the mean of the four before. Experts (arm ``tae``) are trained on what that gives, from the first
window on, and judged against the same ``control`` on windows 40-53.

=================================== ===================================================================================
coverage_B                          share of the candidates asked for whose own vector is there; B = 10, 25, 50, 100
SURFACE.coverage_B                  the same on each surface
coverage_B_stratum_S                the same by sampling stratum: 0 bought, 1 drawn uniformly, 2 drawn by popularity
present_user_B, present_nearest_B   share that has a vector once the miss policy has filled in
RULE_B                              coverage of simpler rankings: ``popularity``, ``repeats``, ``random``
compute_B                           coverage where B is of the cost of live scoring, encoding users included, each of
                                    which costs as much as ``encoding_cost`` candidates
gain_B, _lo, _hi                    fall of NE against ``control`` in % and its 95 % interval, with the miss policy
                                    ``miss_policy``, the best on windows 20-39 at all budgets together
gain_MISS_B, _lo, _hi               the same with each: ``zeros``, ``user``, ``nearest``
gain_live, _lo, _hi                 the upper limit: every pair scored live
live_over_B, _lo, _hi               what live scoring is worth beyond that, in %
covered_gain_B, _lo, _hi            the same as ``gain_zeros_B`` and
covered_live_B, _lo, _hi            ``gain_live``, on those candidates alone whose own vector was there
noise_floor_pct                     gain between two seeds of ``control``
SURFACE.gain_B, SURFACE.gain_live   on each surface of which experts were trained
online_…                            what stands in for a vector in the online store: :mod:`benchmarks.solaris_misses`
=================================== ===================================================================================
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import solaris_experts as experts
from benchmarks import solaris_misses as misses
from benchmarks import solaris_rounds as rounds
from benchmarks.options import Options, Values
from benchmarks.solaris_rounds import SHARES, variant
from hypercast.cli.main import shipped_config
from hypercast.runtime.config import PlatformConfig
from hypercast.serving.speculation.misses import MISSES, Miss
from hypercast.serving.speculation.speculator import Speculator
from streaming import config as configuration
from streaming.errors import ConfigError
from transfer import gain
from transfer.gain import POOLED, STEADY, Span
from transfer.sums import UserSums

CHOOSE = Span("choose", 20, 39)
SURFACES = ("endcap", "mailer_interior")
SPECULATION = Speculator.Config.model_validate(
    {"predictor": {"source": {"place": "store", "popular": 200, "attributes": ["category", "brand", "type"]}}}
)


def measure(options: Options) -> Values:
    """All figures; trains whatever ``--work`` does not hold yet.

    Raises:
        ConfigError: ``--data`` is not given.
    """
    if options.data is None:
        raise ConfigError(
            "solaris needs a data set: give --data DATASET, for example --data data/complete_journey_demo, and --work "
            "DIR to keep what it trains"
        )
    base = configuration.load(shipped_config("platform/demo.yaml"), PlatformConfig)
    values = base.model_dump(mode="json") | {"dataset": {"path": str(options.data)}, "engine": "local", "seeds": [0]}
    config = PlatformConfig.model_validate(values)
    if options.work is not None:
        return figures(config, SPECULATION, work=options.work, surfaces=SURFACES, choose=CHOOSE, report=STEADY)
    with tempfile.TemporaryDirectory() as work:
        return figures(config, SPECULATION, work=Path(work), surfaces=SURFACES, choose=CHOOSE, report=STEADY)


def figures(
    config: PlatformConfig,
    speculation: Speculator.Config,
    *,
    work: Path,
    surfaces: Sequence[str],
    choose: Span,
    report: Span,
) -> Values:
    """The figures of a platform with that speculation, on experts of ``surfaces``."""
    job = rounds.teacher(config, work)
    encoding = rounds.encoding_cost(job)
    each = rounds.Rounds(job, speculation, work=work, encoding=encoding)
    counted = {window.index: each.run(window) for window in job.workspace.dataset.windows}
    values: Values = {"encoding_cost": round(encoding, 1)}
    values |= _shares([counts for index, counts in counted.items() if index in report], job.workspace.inputs.surfaces)
    late_windows = range(report.first, report.last + 1)
    values |= misses.figures(job.workspace, job.publisher.log, job.publisher.registry, windows=late_windows)
    experts.train(job, config, work=work, surfaces=surfaces)
    chosen = experts.read(job, work=work, surfaces=surfaces, span=choose)
    late = experts.read(job, work=work, surfaces=surfaces, span=report)
    miss = _best(gain.pooled(chosen))
    values |= {"miss_policy": miss} | _gains(late, miss)
    floor = gain.noise_floor(gain.pooled(late))
    values |= {} if floor is None else {"noise_floor_pct": floor}
    for share in SHARES:
        covered = experts.read_covered(job, work=work, surfaces=surfaces, span=report, share=share)
        values |= _covered_gains(gain.pooled(covered), share)
    return values


def _shares(windows: Sequence[rounds.Counts], surfaces: Sequence[str]) -> Values:
    """Coverage over ``windows`` from what was counted."""
    values: Values = {}
    for name in windows[0]:
        if name.startswith("asked"):
            continue
        stratum = name[name.index("_stratum") :] if "_stratum" in name else ""
        hits = [sum(counts[name][s] for counts in windows) for s in range(len(surfaces))]
        asked = [sum(counts[f"asked{stratum}"][s] for counts in windows) for s in range(len(surfaces))]
        values[name] = sum(hits) / sum(asked)
        if name.startswith("coverage") and not stratum:
            pairs = zip(surfaces, hits, asked, strict=True)
            values |= {f"{surface}.{name}": hit / of for surface, hit, of in pairs if of}
    return values


def _best(sums: UserSums) -> Miss:
    """The miss policy with the lowest NE, in the mean over budgets."""
    by_arm = sums.mean_by_arm("ne")
    return min(MISSES, key=lambda miss: sum(by_arm[variant(share, miss)] for share in SHARES))


def _gains(by_surface: experts.BySurface, miss: Miss) -> Values:
    pairs = [(variant(share, each), gain.CONTROL) for share in SHARES for each in MISSES]
    pairs += [(experts.LIVE, gain.CONTROL)] + [(experts.LIVE, variant(share, miss)) for share in SHARES]
    names = {variant(share, each): f"gain_{each}_{share}" for share in SHARES for each in MISSES}
    values: Values = {}
    for surface, sums in {POOLED: gain.pooled(by_surface), **by_surface}.items():
        prefix = "" if surface == POOLED else f"{surface}."
        for one in gain.gains(sums, surface=surface, span="report", pairs=pairs):
            key = names.get(one.arm, "gain_live")
            if one.against != gain.CONTROL:
                key = f"live_over_{one.against.split('_')[1].lstrip('0')}"
            for mine in {key, key.replace(f"_{miss}_", "_")} if prefix == "" else {key.replace(f"_{miss}_", "_")}:
                values |= {f"{prefix}{mine}": one.gain_pct, f"{prefix}{mine}_lo": one.lo, f"{prefix}{mine}_hi": one.hi}
    return values


def _covered_gains(sums: UserSums, share: int) -> Values:
    names = {variant(share, "zeros"): f"covered_gain_{share}", experts.LIVE: f"covered_live_{share}"}
    values: Values = {}
    for one in gain.gains(sums, surface=POOLED, span="covered", pairs=[(arm, gain.CONTROL) for arm in names]):
        key = names[one.arm]
        values |= {key: one.gain_pct, f"{key}_lo": one.lo, f"{key}_hi": one.hi}
    return values
