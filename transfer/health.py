"""What the jobs of a run noted of every window: coverage and age of what experts read, drift of the snapshots.

Read from the checkpoints of a run folder, which hold the metrics of every window done::

    RUN/checkpoints/foundation            drift/…
    RUN/checkpoints/experts/SURFACE       coverage/…  teacher/age_hours
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


@dataclass(frozen=True, kw_only=True)
class Health:
    """Attributes: ``coverage``, shares of a surface's candidates by status, by surface; ``drift``, by measure; ``age``,
    mean hours from the snapshot's watermark to the request, by surface and window. Names of metrics stand without
    ``coverage/`` and ``drift/``; empty where nothing was noted.
    """

    coverage: Mapping[str, Series]
    drift: Series
    age: Mapping[str, Mapping[int, float]]


def read(run: Path, *, surfaces: Sequence[str]) -> Health:
    """What was noted so far.

    Raises:
        CheckpointError: a checkpoint cannot be read.
    """
    folders = {name: run / "checkpoints" / "experts" / name for name in surfaces}
    return Health(
        coverage={name: noted for name, folder in folders.items() if (noted := _series(folder, COVERAGE))},
        age={name: noted["age_hours"] for name, folder in folders.items() if (noted := _series(folder, TEACHER))},
        drift=_series(run / "checkpoints" / "foundation", DRIFT),
    )


def _series(folder: Path, prefix: str) -> dict[str, dict[int, float]]:
    newest = checkpoint.latest(folder)
    if newest is None:
        return {}
    try:
        # Without the tensors, which take a thousand times as long.
        noted = json.loads((newest / "state.json").read_bytes())["metrics"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{newest}: what was noted of the windows cannot be read ({error}). If the run is going on, ask again; "
            "otherwise resume it, which says what is damaged: hypercast run PLATFORM.yaml"
        ) from None
    series: dict[str, dict[int, float]] = {}
    for window, metrics in noted.items():
        for name, value in metrics.items():
            if name.startswith(prefix):
                series.setdefault(name.removeprefix(prefix), {})[int(window)] = value
    return series
