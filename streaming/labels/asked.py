"""The window that each task is read for: what of the heads' buckets it takes.

Shape legend: C candidates, G levels of groups, H heads, T tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streaming.errors import ConfigError
from streaming.labels.attribution import DAY, Int, conversions, converts, window_of
from streaming.labels.delays import DelayCurves
from streaming.labels.plan import LabelPlan
from streaming.labels.policy import Interpolation

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class AskedWindows:
    """How a plan's heads combine into one probability a task.

    Attributes:
        within_CH: how much of each head's bucket lies within the window, in [0, 1]; 1 for heads that are no buckets.
        stretch_CT: how many conversions come within the window for one that comes within the heads' buckets; 1 or more.
    """

    within_CH: Float32
    stretch_CT: Float32


def check_surfaces(windows: Mapping[str, Mapping[str, int]], surfaces: Sequence[str]) -> None:
    """Refuse windows of surfaces that there are not.

    Raises:
        ConfigError: as said.
    """
    if unknown := sorted(windows.keys() - set(surfaces)):
        raise ConfigError(
            f"asked windows: there is no surface {', '.join(unknown)}; allowed are {', '.join(surfaces)}. "
            f"Example: asked_days: {{{surfaces[0]}: {{purchase: 7}}}}"
        )


def joined(parts: Sequence[tuple[Int, AskedWindows]], *, candidates: int) -> AskedWindows:
    """One reading of C candidates from those of some of them each, given with their places; at least one part."""
    heads, tasks = parts[0][1].within_CH.shape[1], parts[0][1].stretch_CT.shape[1]
    within_CH = np.ones((candidates, heads), dtype=np.float32)
    stretch_CT = np.ones((candidates, tasks), dtype=np.float32)
    for place, part in parts:
        within_CH[place], stretch_CT[place] = part.within_CH, part.stretch_CT
    return AskedWindows(within_CH=within_CH, stretch_CT=stretch_CT)


def within(label_C: Float32, known_C: Int, *, time_C: Int, window: int) -> Float32:
    """Labels of a shorter window than they were attributed with: a conversion after it does not count."""
    conversion_C = conversions(label_C, known_C)
    return converts(time_C=time_C, conversion_C=conversion_C, window=window).astype(np.float32)


def ask(
    plan: LabelPlan,
    *,
    group_CG: Int,
    curves: Mapping[str, DelayCurves],
    windows: Mapping[str, int] | None = None,
) -> AskedWindows:
    """Read each task for a window of its own.

    Args:
        group_CG: keys of each candidate's groups, as the curves were estimated with.
        curves: of interpolated tasks, as of the requests; others need none, nor does an interpolated task that is read
            for its whole attribution window and has a head up to it.
        windows: by task, in microseconds; a task that is not named is read for its attribution window.

    Raises:
        ConfigError: a window that a task cannot be read for, or no curve to read it with.
    """
    chosen = dict(windows or {})
    if unknown := sorted(chosen.keys() - {task.name for task in plan.tasks}):
        names = ", ".join(task.name for task in plan.tasks)
        raise ConfigError(f"asked windows: there is no task {', '.join(unknown)}; allowed are {names}.")
    within_CH = np.ones((len(group_CG), len(plan.heads)), dtype=np.float32)
    stretch_CT = np.ones((len(group_CG), len(plan.tasks)), dtype=np.float32)
    for index, (task, policy) in enumerate(zip(plan.tasks, plan.policies, strict=True)):
        window = chosen.get(task.name)
        if not isinstance(policy, Interpolation):
            if window is not None and (task.attribution_seconds is None or window != window_of(task)):
                raise ConfigError(
                    f"asked windows: task {task.name} is trained by '{policy.kind}' and knows its own window only. "
                    f"Give it the policy 'interpolation', for example labels.{task.name}.kind: interpolation."
                )
            continue
        whole = window_of(task)
        window = whole if window is None else window
        if not 0 < window <= whole:
            raise ConfigError(
                f"asked windows: {window / DAY:g} days of task {task.name}; allowed is what lies above 0 and up to its "
                f"attribution window, {whole / DAY:g} days."
            )
        heads = [place for place, head in enumerate(plan.heads) if head.task == task.name]
        buckets = [(plan.heads[place].start, plan.heads[place].end) for place in heads]
        if window == whole == buckets[-1][1]:
            continue
        if task.name not in curves:
            raise ConfigError(
                f"asked windows: {window / DAY:g} days of task {task.name} are read off a delay curve, and there is "
                "none. Estimate one: DelayCurves.Config().estimate(...)."
            )
        within_CH[:, heads] = curves[task.name].split(group_CG, buckets, window)
        stretch_CT[:, index] = curves[task.name].stretch(group_CG, buckets[-1][1], window)
    return AskedWindows(within_CH=within_CH, stretch_CT=stretch_CT)
