"""One row of a report: levels and gains of every arm, over the rows of a surface or of a part of it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from transfer import gain
from transfer.eta import etas
from transfer.gain import Gain, Span
from transfer.sums import UserSums


@dataclass(frozen=True, kw_only=True)
class Row:
    """One surface in one span. ``ne`` and ``auc`` are means over seeds, by arm; gains by (arm, against).

    ``eta``: by arm, empty where it is not defined (:mod:`transfer.eta`).
    """

    surface: str
    users: int
    rows: int
    ne: dict[str, float]
    ne_pop: dict[str, float]
    auc: dict[str, float]
    calibration: dict[str, float]
    gains: dict[tuple[str, str], Gain]
    noise_floor_pct: float | None
    eta: dict[str, float]


def row_of(surface: str, span: Span, each: UserSums, *, replicates: int, seed: int) -> Row:
    """The row of ``each``, under the name ``surface``; ``replicates`` and ``seed`` are of the bootstrap."""
    compared = gain.gains(each, surface=surface, span=span.name, replicates=replicates, seed=seed)
    return Row(
        surface=surface,
        users=len(set(each.user.tolist())),
        rows=int(each.rows.sum()),
        ne=each.mean_by_arm("ne"),
        ne_pop=each.mean_by_arm("ne_pop"),
        auc=each.mean_by_arm("auc"),
        calibration=each.mean_by_arm("calibration"),
        gains={(one.arm, one.against): one for one in compared},
        noise_floor_pct=gain.noise_floor(each),
        eta=etas(each),
    )


def row_dict(row: Row) -> dict[str, Any]:
    """The row as plain values for JSON, without its name; gains are keyed ``ARM_vs_AGAINST``."""
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "surface"}
    for name in ("ne", "ne_pop", "auc", "calibration"):
        values[name] = {arm: None if value != value else value for arm, value in values[name].items()}
    values["gains"] = {
        f"{arm}_vs_{against}": {
            "gain_pct": one.gain_pct,
            "lo": one.lo,
            "hi": one.hi,
            "ne_arm": one.ne_arm,
            "ne_control": one.ne_control,
            "seeds": one.seeds,
            "excludes_zero": one.excludes_zero,
            "verdict": one.verdict,
        }
        for (arm, against), one in row.gains.items()
    }
    return values
