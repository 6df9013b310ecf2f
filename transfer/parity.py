"""Time to parity: how long a control trains until the arm that was given a start is ahead of it no more.

Windows are judged in blocks, because the interval of a single one is wide; a control is level in the first block of
which the gain's interval reaches 0, and stays level in all that follow. That is counted in windows from the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer import gain, predictions, sums
from transfer.gain import CONTROL, POOLED, TREATED, Gain
from transfer.sums import UserSums

BLOCK = 4
"""Windows that are judged together."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Attributes: ``surface``; ``first`` and ``last`` window that were judged; ``reached``, the first window of the
    block from which on the control is level, None where it never is; ``final``, the gain in the last block.
    """

    surface: str
    first: int
    last: int
    reached: int | None
    final: Gain

    @property
    def windows(self) -> int | None:
        """Windows that the control needed; None where it is behind to the end."""
        return None if self.reached is None else self.reached - self.first


def parities(
    run: Path,
    *,
    task: str,
    surfaces: Sequence[str] | None = None,
    pair: tuple[str, str] = (TREATED, CONTROL),
    untouched: bool = False,
    replicates: int = 500,
) -> list[Parity]:
    """Of every surface of a run folder, and of all together; surfaces where the pair is in no block are left out.

    Args:
        run: the run folder.
        task: whose labels are judged.
        surfaces: their order; None takes all that are there, by name.
        pair: (arm, against).
        untouched: the untouched fifth of the users instead of all others.
        replicates: bootstrap draws per block.

    Raises:
        DataError: a prediction table is broken, or has no such task.
    """
    names = predictions.surfaces(run) if surfaces is None else list(surfaces)
    present = {name: windows for name in names if (windows := predictions.windows(run, name))}
    every = sorted({window for windows in present.values() for window in windows})
    # The last block takes the rest: a short one would be level for want of rows.
    starts = range(0, max(len(every) - BLOCK, 0) + 1, BLOCK)
    blocks = [every[start : None if start == starts[-1] else start + BLOCK] for start in starts] if every else []
    judged: dict[str, dict[int, Gain]] = {}
    last: dict[str, int] = {}
    for block in blocks:
        by_surface: dict[str, UserSums] = {}
        for name, windows in present.items():
            parts = [sums.of_window(run, surface=name, window=each, task=task) for each in block if each in windows]
            if parts:
                by_surface[name] = sums.combine(parts).select(untouched=untouched)
        if len(present) > 1:
            by_surface[POOLED] = gain.pooled(by_surface)
        for name, of_surface in by_surface.items():
            span = f"windows {block[0]} to {block[-1]}"
            for one in gain.gains(of_surface, surface=name, span=span, pairs=[pair], replicates=replicates):
                judged.setdefault(name, {})[block[0]] = one
                last[name] = block[-1]
    order = [name for name in [*present, POOLED] if name in judged]
    return [
        Parity(
            surface=name,
            first=min(judged[name]),
            last=last[name],
            reached=level_from(judged[name]),
            final=list(judged[name].values())[-1],
        )
        for name in order
    ]


def level_from(gains: dict[int, Gain]) -> int | None:
    """The first window of the earliest block from which on no gain is clear of 0; None if the last one is."""
    reached = None
    for first, one in reversed(gains.items()):
        if one.lo > 0:
            break
        reached = first
    return reached
