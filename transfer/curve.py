"""A run window by window: gains with intervals and normalised entropies, per surface and pooled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer import gain, predictions, sums
from transfer.gain import CONTROL, POOLED, TREATED, Gain


@dataclass(frozen=True, kw_only=True)
class Point:
    """One window of one surface.

    Attributes:
        gains: by (arm, against); absent where a pair cannot be compared in this window.
        ne: by arm, means over seeds; nan where not defined.
    """

    window: int
    gains: dict[tuple[str, str], Gain]
    ne: dict[str, float]


Curves = Mapping[str, Sequence[Point]]
"""Points by surface, in the order of windows; the pooled ones last, under :data:`transfer.gain.POOLED`."""


def curves(
    run: Path,
    *,
    task: str,
    surfaces: Sequence[str] | None = None,
    pairs: Sequence[tuple[str, str]] = ((TREATED, CONTROL),),
    untouched: bool = False,
    replicates: int = 500,
    seed: int = 0,
) -> Curves:
    """Judge every window of a run folder apart; one window is held in memory at a time.

    Args:
        run: the run folder.
        task: whose labels are judged.
        surfaces: their order; None takes all that are there, by name.
        pairs: (arm, against) to compare.
        untouched: the untouched fifth of the users instead of all others.
        replicates: bootstrap draws per window.
        seed: of the bootstrap.

    Raises:
        DataError: a prediction table is broken, or has no such task.
    """
    names = predictions.surfaces(run) if surfaces is None else list(surfaces)
    present = {name: windows for name in names if (windows := predictions.windows(run, name))}
    result: dict[str, list[Point]] = {name: [] for name in present}
    if len(present) > 1:
        result[POOLED] = []
    for window in sorted({window for windows in present.values() for window in windows}):
        each = {
            name: sums.of_window(run, surface=name, window=window, task=task).select(untouched=untouched)
            for name in present
            if window in present[name]
        }
        if POOLED in result:
            each[POOLED] = gain.pooled(each)
        for name, of_surface in each.items():
            found = gain.gains(
                of_surface, surface=name, span=f"window {window}", pairs=pairs, replicates=replicates, seed=seed
            )
            gains = {(one.arm, one.against): one for one in found}
            result[name].append(Point(window=window, gains=gains, ne=of_surface.mean_by_arm("ne")))
    return result
