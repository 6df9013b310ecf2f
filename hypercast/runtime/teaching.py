"""What a run can still teach an expert: of which windows its TAE log holds what a mode reads, or may yet be given it.

A segment is never changed, and holds what its snapshot declares (``foundation.publisher.representations`` as of its
release). A window that lacks a representation is therefore published once more, by another snapshot that declares it,
has seen nothing of the window (law L3), and is newer than the one that is read now; where the registry has none, the
window cannot be replayed in that mode.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from experts import arms
from experts.steps import SurfaceLearner
from experts.teacher import PAST, POOLED, as_late_as
from foundation.publish import REPRESENTATIONS
from hypercast import pins
from hypercast.errors import RegistryError
from hypercast.pins import Pin
from hypercast.registry import Registry, Snapshot
from hypercast.store.segment import Segment
from hypercast.store.tae_log import TaeLog
from streaming.dataset import Window
from streaming.workspace import Workspace
from transfer.gain import CONTROL, FINETUNE, TREATED

BACKFILL = 12
"""Windows that a new expert learns unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """What an expert may read, as of when it was looked at.

    Attributes:
        pin: of the expert.
        workspace: the data set.
        learner: how the expert learns; its arms say what it reads.
        segments: of the TAE log that ``pin`` may read, by window, oldest snapshot first.
        snapshots: of the registry that ``pin`` may read, oldest first.
    """

    pin: Pin
    workspace: Workspace
    learner: SurfaceLearner.Config
    segments: Mapping[int, Sequence[Segment]]
    snapshots: Sequence[Snapshot]

    @staticmethod
    def of(
        *, registry: Registry, log: TaeLog, pin: Pin, workspace: Workspace, learner: SurfaceLearner.Config
    ) -> "Teaching":
        """As ``registry`` and ``log`` are now."""
        segments: dict[int, list[Segment]] = {}
        for segment in log.segments():
            if _reads(pin, segment.snapshot):
                segments.setdefault(segment.window, []).append(segment)
        known = [one for one in registry.list(pin.lineage) if _reads(pin, one.name)]
        return Teaching(pin=pin, workspace=workspace, learner=learner, segments=segments, snapshots=known)

    @property
    def reads(self) -> set[str]:
        """Representations that the arms read of the log."""
        return {POOLED if name == PAST else name for name in self.learner.representations()}

    def missing(self, windows: Sequence[Window], *, begun: bool = False) -> list[tuple[Window, Snapshot]]:
        """What has to be published before ``windows``, which follow each other, can be replayed.

        What has ``begun`` to replay them need not start anew from a snapshot that may be gone.

        Raises:
            RegistryError: something is missing that no snapshot in the registry may publish, or start from.
        """
        if not begun:
            self._check_start(windows)
        found: dict[tuple[int, str], tuple[Window, Snapshot]] = {}
        for window in (*self._earlier(windows[0]), *windows):
            for delay in self.learner.delays:
                labels_only = delay > self.learner.teacher_delay_windows
                read = self._read(window, delay)
                if read is None and window not in windows and not self.segments.get(window.index):
                    continue  # a window before the replay that was never published: its keys are misses
                if read is not None and (labels_only or self.reads <= read.facts.representations.keys()):
                    self._check_pin(read)
                    continue
                snapshot = self._publishing(window, delay, read)
                found[window.index, snapshot.name] = (window, snapshot)
        return [*found.values()]

    def longest(self, most: int) -> tuple[int, str]:
        """How many of the data set's last windows can be replayed, at most ``most``; and why no more, or ``""``."""
        windows = self.workspace.dataset.windows
        for number in range(1, min(most, len(windows)) + 1):
            try:
                self.missing(windows[-number:])
            except RegistryError as error:
                return number - 1, str(error)
        return min(most, len(windows)), ""

    def modes(self) -> list[str]:
        """Modes in which at least the last window can be replayed."""
        return [mode for mode in arms.MODES if mode != CONTROL and self._of(mode).longest(1)[0]]

    def check(self, *, mode: str, declared: Sequence[str], example: str) -> int:
        """How many windows, up to :data:`BACKFILL`, a new expert can replay in ``mode``, which its arms are of.

        Args:
            mode: one of :data:`experts.arms.MODES`.
            declared: representations that the run's next snapshots declare.
            example: the command with which another expert is created, up to ``--mode``.

        Raises:
            RegistryError: not one.
        """
        if not self.snapshots and not self.segments:  # the run has not begun
            number, problem = BACKFILL, ""
            if not self.reads <= set(declared):
                number, problem = 0, f"{self.pin.lineage} will publish {', '.join(declared)} only."
            possible = [each for each in arms.MODES if each != CONTROL and self._of(each).reads <= set(declared)]
        else:
            number, problem = self.longest(BACKFILL)
            possible = [] if number else self.modes()
        if number:
            return number
        wanted = [name for name in REPRESENTATIONS if name in {*declared, *self.reads}]
        publisher = f"representations: [{', '.join(wanted)}]"
        if mode == FINETUNE:
            publisher += f", keep: {BACKFILL + 1}"
        other = ""
        if possible:
            usual = TREATED if TREATED in possible else possible[0]
            other = f" Modes that it can serve now: {', '.join(possible)}. Example: {example} --mode {usual}."
        raise RegistryError(
            f"mode '{mode}' reads {', '.join(sorted(self.reads))}, which this run has of no window that could be "
            f"replayed: {problem}{other} For '{mode}', publish the windows that it is to replay with that, in the "
            f"platform file: foundation: {{publisher: {{{publisher}}}}}"
        )

    def _of(self, mode: str) -> "Teaching":
        return replace(self, learner=self.learner.model_copy(update={"arms": [CONTROL, mode]}))

    def _earlier(self, first: Window) -> list[Window]:
        """Windows before ``first`` that are read too: some labels become known late, and ``past`` is made of them."""
        dataset = self.workspace.dataset
        delay = max(round(task.delay_seconds * 1_000_000) for task in dataset.config.tasks)
        before = [each for each in dataset.windows if each.start < first.start]
        late = [each for each in before if first.start < each.end + delay]
        if PAST in self.learner.representations():  # of each of those that are late, too
            return before[-(self.learner.past.windows + 2 * len(late)) :]
        return late

    def _read(self, window: Window, delay: int) -> Segment | None:
        """The segment that is read of a window, as :class:`experts.teacher.TeacherReader` chooses it."""
        found = self.segments.get(window.index, ())
        if delay and self.pin.version is None:
            as_of = self._as_of(window, delay)
            found = [each for each in found if each.facts.watermark <= as_of]
        return found[-1] if found else None

    def _as_of(self, window: Window, delay: int) -> int:
        if self.pin.version is not None:
            return window.start
        return as_late_as(self.workspace.dataset, window.index, delay=delay)

    def _publishing(self, window: Window, delay: int, read: Segment | None) -> Snapshot:
        """The newest snapshot that may publish the window and be read instead of ``read``."""
        as_of = self._as_of(window, delay)
        able = [one for one in self.snapshots if one.watermark <= as_of and self.reads <= one.dims.keys()]
        if able and (read is None or able[-1].version > pins.parse_snapshot_name(read.snapshot)[1]):
            return able[-1]
        lacks = f"has no TAEs by {self.pin.target}"
        if read is not None:
            lacks = (
                f"was published by {read.snapshot} with {', '.join(read.facts.representations)}, not "
                f"{', '.join(sorted(self.reads - read.facts.representations.keys()))}"
            )
        elif delay and self.segments.get(window.index):
            lacks += f" that are {delay} windows late"
        known = ", ".join(f"{one.name} ({one.watermark}: {', '.join(one.dims)})" for one in self.snapshots)
        raise RegistryError(
            f"window {window.index} {lacks}, and no snapshot of it may write them: that needs a watermark of at most "
            f"{as_of} and {', '.join(sorted(self.reads))}, and the registry has {known or 'none'}."
        )

    def _check_pin(self, read: Segment) -> None:
        for name in sorted(self.reads & read.facts.representations.keys()):
            width = read.facts.representations[name]
            self.pin.check(snapshot=read.snapshot, representation=name, width=width, dtype=read.facts.dtype)

    def _check_start(self, windows: Sequence[Window]) -> None:
        """Refuse to fine-tune a tower that is gone: see :class:`experts.finetune.Start`."""
        since = self.learner.finetune_window
        first = next((each for each in windows if each.index >= since), None)
        if FINETUNE not in self.learner.arms or first is None or self.pin.version is not None:
            return
        as_of = self._as_of(first, self.learner.teacher_delay_windows)
        if not any(one.watermark <= as_of for one in self.snapshots):
            known = ", ".join(f"{one.name} ({one.watermark})" for one in self.snapshots)
            raise RegistryError(
                f"arm {FINETUNE!r} takes over the tower as of window {first.index}: that needs a snapshot with a "
                f"watermark of at most {as_of}, and the registry has {known or 'none'}. A later "
                "learner: {finetune_window: N} needs a later one."
            )


def _reads(pin: Pin, snapshot: str) -> bool:
    lineage, version = pins.parse_snapshot_name(snapshot)
    return lineage == pin.lineage and pin.version in (None, version)
