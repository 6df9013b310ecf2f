"""Promotion: which training serves a surface. The alias moves only to what is measurably better, and can go back.

::

    RUN/experts/SURFACE/channels/serving.json     every training it has named; the last one holds

The first training of a surface has to beat its own control; a later one beats what the alias names, on the same
requests of the windows that both have predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hypercast.errors import RegistryError
from hypercast.lock import exclusive
from hypercast.objects import channels
from hypercast.pins import parse_snapshot_name
from hypercast.runtime import spinup
from hypercast.runtime.spinup import Version
from streaming.errors import DataError
from transfer import gain, predictions
from transfer.gain import CONTROL, Gain
from transfer.predictions import Column
from transfer.sums import UserSums

SERVING = "serving"
"""Name of the alias, and of the arm that a candidate is compared with."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What came of a promotion.

    Attributes:
        surface: whose alias it is about.
        candidate: the training that was to be promoted, ``NAME@NNNN``.
        against: what it had to beat: the training that the alias named, or ``control``.
        promoted: whether the alias names the candidate now.
        reason: why, or why not.
        gain: the candidate's, over ``against``; None where nothing could be compared.
    """

    surface: str
    candidate: str
    against: str
    promoted: bool
    reason: str
    gain: Gain | None


def serving(run: Path, surface: str) -> str | None:
    """The training that a surface's alias names."""
    return channels.read(run / "experts", surface, SERVING).target


def promote(run: Path, name: str) -> Decision:
    """Let the alias of its surface name the last training of an expert, if that is better.

    Raises:
        RegistryError: the expert has no complete training, or what the alias names is gone.
        ConflictError: somebody else has moved the alias in between.
        DataError: the two have not predicted the same requests.
    """
    candidate = _last(run, name)
    surface = candidate.training.expert.surface
    before = serving(run, surface)
    decision = judge(run, candidate, against=before)
    if decision.promoted and before != candidate.label:
        with exclusive(run / "experts"):
            alias = channels.read(run / "experts", surface, SERVING)
            alias.expect(before)
            channels.write(run / "experts", alias.to(candidate.label))
    return decision


def rollback(run: Path, surface: str) -> str:
    """Let the alias of a surface name again what it named before; returns that.

    Raises:
        RegistryError: it has named nothing else, or that is gone.
    """
    with exclusive(run / "experts"):
        alias = channels.read(run / "experts", surface, SERVING)
        if len(alias.history) < 2:
            raise RegistryError(
                f"{run}: surface '{surface}' has been served by {alias.target or 'no promoted expert'} only: nothing "
                "to go back to. Promote another expert: hypercast expert promote NAME"
            )
        before = alias.back()
        _named(run, before.history[-1])
        channels.write(run / "experts", before)
        return before.history[-1]


def judge(run: Path, candidate: Version, *, against: str | None) -> Decision:
    """Whether a complete training is better than ``against``, a training's label; None: than its control."""
    training = candidate.training
    facts = {"surface": training.expert.surface, "candidate": candidate.label, "against": against or CONTROL}
    if against == candidate.label:
        return Decision(**facts, promoted=True, reason="it serves the surface already", gain=None)
    if against is None:
        measured, windows = spinup.measure(candidate), _windows(candidate)
    else:
        rival = _named(run, against)
        windows = sorted({*_windows(candidate)} & {*_windows(rival)})
        if not windows:
            reason = (
                f"{candidate.label} has predicted windows {training.first} to {training.last}, {against} "
                f"{rival.training.first} to {rival.training.last}: none in common to compare them on. Train with a "
                f"longer --backfill, down to window {rival.training.last}"
            )
            return Decision(**facts, promoted=False, reason=reason, gain=None)
        found = gain.gains(
            side_by_side(candidate, rival, windows),
            surface=training.expert.surface,
            span=f"windows {windows[0]} to {windows[-1]}",
            pairs=[(training.expert.mode, SERVING)],
        )
        measured = found[0] if found else None
    over = f"over {facts['against']} in windows {windows[0]} to {windows[-1]}"
    if measured is None:
        return Decision(
            **facts, promoted=False, reason=f"no gain {over}: no seed in common, or labels of one class", gain=None
        )
    return Decision(**facts, promoted=measured.verdict == "better", reason=explain(measured, over), gain=measured)


def explain(measured: Gain, over: str) -> str:
    """A gain with its interval and noise floor, and what follows from them, in a sentence."""
    shown = f"{measured.gain_pct:+.2f} % [{measured.lo:+.2f}, {measured.hi:+.2f}] {over}"
    floor = measured.noise_floor_pct
    noise = "noise floor unknown with one seed" if floor is None else f"noise floor {floor:.2f} %"
    if measured.ne_arm >= 1:
        noise += f"; beware: with a NE of {measured.ne_arm:.3f} it says less than the base rate alone (1)"
    if measured.verdict == "better":
        return f"better: {shown}; {noise}"
    if measured.verdict == "worse":
        return f"worse: {shown}; {noise}"
    if measured.excludes_zero:
        return f"no gain: {shown} is within the {noise}"
    return f"no gain: the interval of {shown} includes 0; {noise}"


def side_by_side(candidate: Version, rival: Version, windows: Sequence[int]) -> UserSums:
    """The candidate's sums, with the rival's own arm as the arm :data:`SERVING`.

    Raises:
        DataError: they are not of the same users and rows.
    """
    mine, theirs = spinup.pooled(candidate, windows), spinup.pooled(rival, windows)
    if candidate.training.expert.task != rival.training.expert.task or not all(
        np.array_equal(getattr(mine, each), getattr(theirs, each)) for each in ("user", "tagged", "rows", "positives")
    ):
        raise DataError(
            f"{candidate.label} and {rival.label} were not judged on the same requests and labels, so that they cannot "
            "be compared: the data set or the task has changed. Train both again: hypercast expert train NAME"
        )
    mode = rival.training.expert.mode
    theirs = theirs.only([column for column in theirs.columns if column.arm == mode])
    renamed = tuple(Column(column.task, SERVING, column.seed) for column in theirs.columns)
    wide = {
        each: np.concatenate([getattr(mine, each), getattr(theirs, each)], axis=1)
        for each in ("loss", "weight_loss", "predicted", "histogram")
    }
    return replace(mine, columns=mine.columns + renamed, **wide)


def _windows(version: Version) -> list[int]:
    return predictions.windows(version.path, version.training.expert.surface)


def _last(run: Path, name: str) -> Version:
    complete = [version for version in spinup.versions(run, name) if version.outcome is not None]
    if not complete:
        raise RegistryError(
            f"{run}: expert '{name}' has no complete training to promote. Train it: hypercast expert train {name} "
            "--backfill 12"
        )
    return complete[-1]


def _named(run: Path, label: str) -> Version:
    name, number = parse_snapshot_name(label)
    for version in spinup.versions(run, name):
        if version.number == number:
            return version
    raise RegistryError(
        f"{run}: {label} served a surface, and its folder under experts.d is gone: there is nothing to compare with or "
        "to go back to. Restore the folder from a copy."
    )
