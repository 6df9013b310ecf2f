"""Promotion: which training serves a surface. The alias moves only to what is measurably better, and can go back.

::

    RUN/experts/SURFACE/channels/serving.json     every training it has named; the last one holds

A training has to beat what serves the surface now, on the same requests of the windows that both have predicted: what
the alias names, or without one the platform's own expert, as exported last and with the arm that would answer. Only
where nothing serves, or has predicted none of these windows, is its own control the rival. It is promoted if the paired
interval says better by more than the noise floor, and if it says more than the base rate alone, with a NE below 1.
A training of one seed has no noise floor; it is promoted by the interval alone, and the verdict says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hypercast.errors import RegistryError
from hypercast.lock import exclusive
from hypercast.objects import channels
from hypercast.pins import parse_snapshot_name
from hypercast.runtime import trainings
from hypercast.runtime.trainings import Version
from streaming.errors import DataError
from transfer import gain, predictions
from transfer.gain import CONTROL, LOGIT_RESIDUAL, TAE, TAE_AUX_HEAD_ADAPTER, TREATED, Gain
from transfer.sums import UserSums

SERVING = "serving"
"""Name of the alias, and of the arm that a candidate is compared with."""
PREFERRED = (TREATED, TAE_AUX_HEAD_ADAPTER, TAE, LOGIT_RESIDUAL, CONTROL)
"""Arms of the platform's own experts that serve where none is named: the first that was exported, best first."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What came of a promotion.

    Attributes:
        surface: whose alias it is about.
        candidate: the training that was to be promoted, ``NAME@NNNN``.
        against: what it had to beat: the training that the alias named, ``own ARM`` for the platform's own expert, or
            ``control``, the candidate's.
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


@dataclass(frozen=True, kw_only=True)
class Own:
    """The platform's own expert of a surface, which serves it where no alias says otherwise.

    Attributes:
        folder: of the newest export, without the arm.
        arm: that serves.
        window: last window that it has learned.
    """

    folder: Path
    arm: str
    window: int


@dataclass(frozen=True, kw_only=True)
class Rival:
    """What a candidate is compared with: an arm of the predictions in ``folder``, and how it is called."""

    label: str
    folder: Path
    task: str
    arm: str


def own(run: Path, surface: str, *, arm: str | None) -> Own | None:
    """The platform's own expert of a surface; None where none was exported.

    Args:
        run: the platform's run folder.
        surface: whose.
        arm: that serves; None for the first of :data:`PREFERRED` that was exported.

    Raises:
        RegistryError: that arm was not exported.
    """
    exported = {
        int(path.name.removeprefix("window=")): path
        for path in (run / "experts" / surface).glob("window=*")
        if path.name.removeprefix("window=").isdecimal()
    }
    if not exported:
        return None
    window = max(exported)
    folder = exported[window]
    arms = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    preferred = [each for each in ((arm,) if arm else PREFERRED) if each in arms]
    if not preferred:
        raise RegistryError(
            f"{folder}: arm {arm or 'to serve'} was not exported; there are {', '.join(arms) or 'none'}. Give "
            "serving: {arm: NAME} with one of those, or train it: expert: {arms: [control, treated]}."
        )
    return Own(folder=folder, arm=preferred[0], window=window)


def serving(run: Path, surface: str) -> str | None:
    """The training that a surface's alias names."""
    return channels.read(run / "experts", surface, SERVING).target


def promote(run: Path, name: str, *, arm: str | None = None) -> Decision:
    """Let the alias of its surface name the last training of an expert, if that is better.

    ``arm``: see :func:`own`.

    Raises:
        RegistryError: the expert has no complete training, or what the alias names is gone.
        ConflictError: somebody else has moved the alias in between.
        DataError: the two have not predicted the same requests.
    """
    candidate = _last(run, name)
    surface = candidate.training.expert.surface
    before = serving(run, surface)
    decision = judge(run, candidate, against=before, arm=arm)
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


def judge(run: Path, candidate: Version, *, against: str | None, arm: str | None = None) -> Decision:
    """Whether a complete training is better than ``against``, a training's label; None: than what serves without one.

    ``arm``: see :func:`own`.
    """
    surface = candidate.training.expert.surface
    if against == candidate.label:
        reason = "it serves the surface already"
        return Decision(surface=surface, candidate=against, against=against, promoted=True, reason=reason, gain=None)
    mine = _windows(candidate)
    rival, note = _own_rival(run, candidate, arm=arm) if against is None else (_named_rival(run, against), "")
    windows = mine if rival is None else sorted({*mine} & {*predictions.windows(rival.folder, surface)})
    facts = {"surface": surface, "candidate": candidate.label, "against": rival.label if rival else CONTROL}
    if not windows and against is not None:
        trained, known = candidate.training, _named(run, against).training
        reason = (
            f"{candidate.label} has predicted windows {trained.first} to {trained.last}, {against} "
            f"{known.first} to {known.last}: none in common to compare them on. Train with a longer --backfill, "
            f"down to window {known.last}"
        )
        return Decision(**facts, promoted=False, reason=reason, gain=None)
    found = gain.gains(
        side_by_side(candidate, rival, windows) if rival else trainings.pooled(candidate, windows),
        surface=surface,
        span=f"windows {windows[0]} to {windows[-1]}",
        pairs=[(candidate.training.expert.mode, SERVING if rival else CONTROL)],
    )
    over = f"over {facts['against']} in windows {windows[0]} to {windows[-1]}"
    if not found:
        reason = f"no gain {over}: no seed in common, or labels of one class{note}"
        return Decision(**facts, promoted=False, reason=reason, gain=None)
    (measured,) = found
    return Decision(**facts, promoted=clears(measured), reason=explain(measured, over) + note, gain=measured)


def clears(measured: Gain) -> bool:
    """Whether a gain is one to serve: clear of zero and of the noise floor, by what beats the base rate."""
    return measured.verdict == "better" and measured.ne_arm < 1


def explain(measured: Gain, over: str) -> str:
    """A gain with its interval and noise floor, and what follows from them, in a sentence."""
    shown = f"{measured.gain_pct:+.2f} % [{measured.lo:+.2f}, {measured.hi:+.2f}] {over}"
    floor = measured.noise_floor_pct
    noise = "no noise floor: one seed" if floor is None else f"noise floor {floor:.2f} %"
    if measured.verdict == "better":
        if not clears(measured):
            return (
                f"not good enough: {shown}; {noise}; a NE of {measured.ne_arm:.3f} is no better than the base rate's, 1"
            )
        return f"better: {shown}; {noise}"
    if measured.verdict == "worse":
        return f"worse: {shown}; {noise}"
    if measured.excludes_zero:
        return f"no gain: {shown} is within the {noise}"
    return f"no gain: the interval of {shown} includes 0; {noise}"


def side_by_side(candidate: Version, rival: Rival, windows: Sequence[int]) -> UserSums:
    """The candidate's sums, with the rival's arm as the arm :data:`SERVING`.

    Raises:
        DataError: they are not of the same users and rows.
    """
    expert = candidate.training.expert
    mine = trainings.pooled(candidate, windows)
    theirs = trainings.added_up(rival.folder, surface=expert.surface, task=rival.task, windows=windows)
    theirs = theirs.only([column for column in theirs.columns if column.arm == rival.arm])
    renamed = tuple(replace(column, arm=SERVING) for column in theirs.columns)
    both = mine.beside(replace(theirs, columns=renamed)) if expert.task == rival.task else None
    if both is None:
        raise DataError(
            f"{candidate.label} and {rival.label} were not judged on the same requests and labels, so that they cannot "
            "be compared: the data set or the task has changed. Train both again: hypercast expert train NAME"
        )
    return both


def _named_rival(run: Path, label: str) -> Rival:
    version = _named(run, label)
    expert = version.training.expert
    return Rival(label=label, folder=version.path, task=expert.task, arm=expert.mode)


def _own_rival(run: Path, candidate: Version, *, arm: str | None) -> tuple[Rival | None, str]:
    """The platform's own expert, if it serves and has predicted what the candidate has; what to say if it has not."""
    expert = candidate.training.expert
    serves = own(run, expert.surface, arm=arm)
    if serves is None:
        return None, ""
    common = {*_windows(candidate)} & {*predictions.windows(run, expert.surface)}
    rival = Rival(label=f"own {serves.arm}", folder=run, task=expert.task, arm=serves.arm)
    if common:
        return rival, ""
    return None, f"; {rival.label}, which serves now, has not predicted these windows and was not compared"


def _windows(version: Version) -> list[int]:
    return predictions.windows(version.path, version.training.expert.surface)


def _last(run: Path, name: str) -> Version:
    complete = [version for version in trainings.versions(run, name) if version.outcome is not None]
    if not complete:
        raise RegistryError(
            f"{run}: expert '{name}' has no complete training to promote. Train it: hypercast expert train {name} "
            "--backfill 12"
        )
    return complete[-1]


def _named(run: Path, label: str) -> Version:
    name, number = parse_snapshot_name(label)
    for version in trainings.versions(run, name):
        if version.number == number:
            return version
    raise RegistryError(
        f"{run}: {label} served a surface, and its folder under experts.d is gone: there is nothing to compare with or "
        "to go back to. Restore the folder from a copy."
    )
