"""What the jobs of a run noted of every window: coverage and age of what experts read, drift of the snapshots.

Read from the checkpoints of a run folder, which hold the metrics of every window done::

    RUN/checkpoints/foundation            drift/…
    RUN/checkpoints/experts/SURFACE       coverage/…  teacher/age_hours
    RUN/checkpoints/experts/GROUP         the same of surfaces that share an expert, with @SURFACE behind each
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypercast.errors import CheckpointError
from hypercast.training import checkpoint

Series = Mapping[str, Mapping[int, float]]
"""Values by metric and window."""

COVERAGE = "coverage/"
DRIFT = "drift/"
TEACHER = "teacher/"
OF = "@"
"""Before the surface's name, where one checkpoint notes the same of several."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """Attributes: ``coverage``, shares of a surface's candidates by status, by surface; ``drift``, by measure; ``age``,
    mean hours from the snapshot's watermark to the request, by surface and window. Names of metrics stand without
    ``coverage/`` and ``drift/``; empty where nothing was noted.
    """

    coverage: Mapping[str, Series]
    drift: Series
    age: Mapping[str, Mapping[int, float]]


def by_surface(noted: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What was noted of each surface of one expert, as one: names are plain where there is one surface only."""
    if len(noted) == 1:
        return {name: value for values in noted.values() for name, value in values.items()}
    return {f"{name}{OF}{surface}": value for surface, values in noted.items() for name, value in values.items()}


def of_surface(noted: Mapping[str, float], surface: str) -> dict[str, float]:
    """Of one expert's metrics what is of ``surface``, and what is of no surface; the inverse of :func:`by_surface`."""
    own = {}
    for name, value in noted.items():
        metric, _, of = name.partition(OF) if name.startswith((COVERAGE, TEACHER)) else (name, "", "")
        if of in ("", surface):
            own[metric] = value
    return own


def read(run: Path, *, surfaces: Sequence[str]) -> Health:
    """What was noted so far.

    Raises:
        CheckpointError: a checkpoint cannot be read.
    """
    coverage: dict[str, dict[str, dict[int, float]]] = {}
    age: dict[str, dict[int, float]] = {}
    for folder in sorted((run / "checkpoints" / "experts").glob("*")):
        noted = _noted(folder)
        for metric, series in _series(noted, COVERAGE).items():
            name, _, surface = metric.partition(OF)
            coverage.setdefault(surface or folder.name, {})[name] = series
        for metric, series in _series(noted, TEACHER).items():
            name, _, surface = metric.partition(OF)
            if name == "age_hours":
                age[surface or folder.name] = series
    return Health(
        coverage={name: coverage[name] for name in surfaces if name in coverage},
        age={name: age[name] for name in surfaces if name in age},
        drift=_series(_noted(run / "checkpoints" / "foundation"), DRIFT),
    )


def _noted(folder: Path) -> dict[str, dict[str, float]]:
    """Metrics by window, as the newest checkpoint has them; empty if there is none."""
    newest = checkpoint.latest(folder)
    if newest is None:
        return {}
    try:
        # Without the tensors, which take a thousand times as long.
        noted: dict[str, dict[str, float]] = json.loads((newest / "state.json").read_bytes())["metrics"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{newest}: what was noted of the windows cannot be read ({error}). If the run is going on, ask again; "
            "otherwise resume it, which says what is damaged: hypercast run PLATFORM.yaml"
        ) from None
    return noted


def _series(noted: Mapping[str, Mapping[str, float]], prefix: str) -> dict[str, dict[int, float]]:
    """Metrics whose names begin with ``prefix``, by the rest of the name and by window."""
    series: dict[str, dict[int, float]] = {}
    for window, metrics in noted.items():
        for name, value in metrics.items():
            if name.startswith(prefix):
                series.setdefault(name.removeprefix(prefix), {})[int(window)] = value
    return series
