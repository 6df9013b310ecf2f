"""What transfer depends on, as studies of one platform found it: read from the flat figures that a study writes.

A study is a platform run that differs in one thing from a base. Its figures are ``NAME.gain_pct``, ``_lo``, ``_hi``,
``NAME.ne``, ``NAME.fm_ne`` and ``NAME.fm_flops_per_candidate``; ``NAME`` is ``base``, or an axis and a place on it:
``staleness_4``, ``coverage_50``, ``width_16``, ``codec_int4``, ``size_24``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streaming.errors import DataError

BASE = "base"
AXES = {
    "staleness": "windows that the teacher is behind",
    "coverage": "examples that the log has, %",
    "width": "numbers of an embedding",
    "codec": "codec of the log",
}
"""Along which a gain is drawn, and what the places on them are."""
SIZE = "size"


@dataclass(frozen=True, kw_only=True)
class Place:
    """One run on an axis: where, and the gain of its expert over the control in % with its 95 % interval."""

    at: str
    gain_pct: float
    lo: float
    hi: float


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """One foundation model: its operations for a candidate, its own NE, and that of the expert that learns from it."""

    flops: float
    fm_ne: float
    expert_ne: float


@dataclass(frozen=True, kw_only=True)
class Studies:
    """Attributes:

    axes: places along each axis that was studied, in order.
    teachers: by compute; two or more, or none.
    exponent, r2: of ``expert NE = level * compute ** exponent`` over the teachers; None where it was not fitted.
    noise_floor_pct: gain between two controls that differ by their seed.
    """

    axes: Mapping[str, Sequence[Place]]
    teachers: Sequence[Teacher]
    exponent: float | None
    r2: float | None
    noise_floor_pct: float | None


def read(path: Path) -> Studies:
    """The studies in a file of flat figures.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    example = "Give what `python -m benchmarks transfer_studies --json FILE` has written."
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return _studies(values)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: {error}. {example}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not the figures of studies ({error}). {example}") from None


def _studies(values: Mapping[str, Any]) -> Studies:
    names = [key.removesuffix(".gain_pct") for key in values if key.endswith(".gain_pct")]
    axes: dict[str, list[Place]] = {}
    for axis in AXES:
        found = [name for name in names if name.startswith(f"{axis}_")]
        if found:
            here = {name.removeprefix(f"{axis}_"): name for name in found} | {_of_base(axis, values): BASE}
            places = [_place(at, name, values) for at, name in here.items()]
            axes[axis] = sorted(places, key=lambda place: (float(place.at) if place.at.isdigit() else 0.0, place.at))
    sizes = [BASE, *(name for name in names if name.startswith(f"{SIZE}_"))]
    teachers = sorted((_teacher(name, values) for name in sizes), key=lambda teacher: teacher.flops)
    return Studies(
        axes=axes,
        teachers=teachers if len(teachers) > 1 else [],
        exponent=_number(values, "power_exponent"),
        r2=_number(values, "power_r2"),
        noise_floor_pct=_number(values, "noise_floor_pct"),
    )


def _of_base(axis: str, values: Mapping[str, Any]) -> str:
    """Where the base stands on an axis."""
    fixed = {"staleness": "0", "coverage": "100"}
    return fixed[axis] if axis in fixed else str(values[f"{BASE}.{axis}"])


def _place(at: str, name: str, values: Mapping[str, Any]) -> Place:
    gain_pct, lo, hi = (float(values[f"{name}.{key}"]) for key in ("gain_pct", "gain_lo", "gain_hi"))
    return Place(at=at, gain_pct=gain_pct, lo=lo, hi=hi)


def _teacher(name: str, values: Mapping[str, Any]) -> Teacher:
    flops, fm_ne, ne = (float(values[f"{name}.{key}"]) for key in ("fm_flops_per_candidate", "fm_ne", "ne"))
    return Teacher(flops=flops, fm_ne=fm_ne, expert_ne=ne)


def _number(values: Mapping[str, Any], key: str) -> float | None:
    return float(values[key]) if key in values else None
