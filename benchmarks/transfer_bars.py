"""Arms against each other, as flat figures: choose modes on early windows, judge them on late ones."""

from collections.abc import Mapping, Sequence

from benchmarks.options import Values
from transfer import gain
from transfer.gain import (
    BLENDED,
    CONTROL,
    CONTROL_MATCHED,
    FINETUNE,
    FM_HEAD,
    FM_SINGLE_SURFACE,
    LIGHTGBM,
    LIGHTGBM_TREATED,
)
from transfer.sums import UserSums

REPLICATES = 2000

TAE_BEST, EXPERT_BEST = "tae_best", "expert_best"
PLAIN = ("kd", "aux_head", "user_embedding")
"""What the best mode with an embedding must beat, beside the controls."""
REFERENCES = (CONTROL, CONTROL_MATCHED, FM_HEAD, LIGHTGBM, LIGHTGBM_TREATED, FM_SINGLE_SURFACE, FINETUNE, BLENDED)
"""Arms that are compared with; no mode of transfer to an expert."""

BySurface = Mapping[str, UserSums]


def arms_of(by_surface: BySurface) -> list[str]:
    """Arms that every surface has, by name."""
    return sorted(set.intersection(*({column.arm for column in each.columns} for each in by_surface.values())))


def choose(by_surface: BySurface) -> dict[str, str]:
    """The modes with the lowest mean NE over surfaces, under ``tae_best`` and ``expert_best``.

    ``tae_best`` is one of those that read the embedding and do not add the teacher's logit; absent if there are none.
    """
    means = {arm: 0.0 for arm in arms_of(by_surface) if arm not in REFERENCES}
    for each in by_surface.values():
        of_arm = each.mean_by_arm("ne")
        means = {arm: total + of_arm[arm] for arm, total in means.items()}
    embedded = {arm: total for arm, total in means.items() if arm.startswith("tae") and "residual" not in arm}
    best = {TAE_BEST: embedded, EXPERT_BEST: means}
    return {name: min(candidates, key=lambda arm: candidates[arm]) for name, candidates in best.items() if candidates}


def pairs_of(arms: Sequence[str], modes: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Comparisons besides those with ``control``, by the name of their keys: (arm, against)."""
    tae, expert = modes.get(TAE_BEST), modes.get(EXPERT_BEST)
    wanted = {
        f"{TAE_BEST}_vs_matched": (tae, CONTROL_MATCHED),
        **{f"{TAE_BEST}_vs_{arm}": (tae, arm) for arm in PLAIN},
        f"{EXPERT_BEST}_vs_fm_head": (expert, FM_HEAD),
        f"{EXPERT_BEST}_vs_lightgbm": (expert, LIGHTGBM),
        "fm_head_vs_lightgbm": (FM_HEAD, LIGHTGBM),
        "blended_vs_fm_head": (BLENDED, FM_HEAD),
        "blended_vs_lightgbm": (BLENDED, LIGHTGBM),
        "lightgbm_treated_vs_lightgbm": (LIGHTGBM_TREATED, LIGHTGBM),
        "fm_head_vs_single_surface": (FM_HEAD, FM_SINGLE_SURFACE),
        "aux_head_adapter_vs_kd": ("aux_head_adapter", "kd"),
    }
    return {
        name: (arm, against)
        for name, (arm, against) in wanted.items()
        if arm is not None and arm != against and {arm, against} <= set(arms)
    }


def figures(by_surface: BySurface, *, modes: Mapping[str, str], prefix: str, replicates: int = REPLICATES) -> Values:
    """All figures of one span, keyed as the module :mod:`benchmarks.transfer` says, with ``prefix`` before each key."""
    arms = arms_of(by_surface)
    own = {arm: arm for arm in arms} | {name: arm for name, arm in modes.items() if arm in arms}
    named = pairs_of(arms, modes)
    against_control = [(arm, CONTROL) for arm in arms if arm != CONTROL and CONTROL in arms]
    values: Values = {}
    ahead: dict[str, int] = {}
    for surface, each in by_surface.items():
        ne, auc = each.mean_by_arm("ne"), each.mean_by_arm("auc")
        pairs = list(dict.fromkeys([*against_control, *named.values()]))
        found = {
            (one.arm, one.against): one
            for one in gain.gains(each, surface=surface, span=prefix, pairs=pairs, replicates=replicates)
        }
        for name, arm in own.items():
            values |= {f"{prefix}{surface}.{name}.ne": ne[arm], f"{prefix}{surface}.{name}.auc": auc[arm]}
            if (one := found.get((arm, CONTROL))) is not None:
                values |= _interval(f"{prefix}{surface}.{name}.gain_", one)
                if name in modes:
                    ahead[f"{name}_vs_control"] = ahead.get(f"{name}_vs_control", 0) + (one.verdict == "better")
        for name, pair in named.items():
            if (one := found.get(pair)) is not None:
                values |= _interval(f"{prefix}{surface}.{name}_", one)
                ahead[name] = ahead.get(name, 0) + (one.verdict == "better")
    values |= {f"{prefix}{name}_surfaces_ahead": count for name, count in ahead.items()}
    floors = [floor for each in by_surface.values() if (floor := gain.noise_floor(each)) is not None]
    if floors:
        values[f"{prefix}noise_floor_pct"] = max(floors)
    return values


def _interval(key: str, one: gain.Gain) -> Values:
    return {f"{key}pct": one.gain_pct, f"{key}lo": one.lo, f"{key}hi": one.hi}
