"""Channels: names that point to one snapshot of a lineage, and remember where they pointed before.

::

    ROOT/FM/channels/
      latest.json     moved by every publish
      stable.json     moved by hand, as any other: {"history": ["FM@0006", "FM@0007"], "reached": 7, "sha256": …}

The last name of the history is where the channel points; a rollback takes it off.
"""

from dataclasses import dataclass
from pathlib import Path

from hypercast.errors import ConflictError, RegistryError
from hypercast.objects import record
from hypercast.pins import check_name, parse_snapshot_name
from streaming import files

LATEST = "latest"
HISTORY = 16
"""Names that a channel remembers."""

REMEDY = "Delete the file and move the channel again; latest moves by itself at the next publish."
"""What to do about a damaged channel."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """Where a channel points.

    Attributes:
        lineage: ``FM``.
        name: ``stable``.
        history: names of snapshots, oldest first; the last one holds. Empty for a channel that there is not.
        reached: the greatest version it ever pointed to; a rollback does not lower it.
    """

    lineage: str
    name: str
    history: tuple[str, ...] = ()
    reached: int = 0

    @property
    def target(self) -> str | None:
        """Name of the snapshot it points to."""
        return self.history[-1] if self.history else None

    def to(self, snapshot: str) -> "Channel":
        """The channel after a move to ``snapshot``."""
        if snapshot == self.target:
            return self
        reached = max(self.reached, parse_snapshot_name(snapshot)[1])
        history = (*self.history, snapshot)[-HISTORY:]
        return Channel(lineage=self.lineage, name=self.name, history=history, reached=reached)

    def back(self) -> "Channel":
        """The channel before its last move.

        Raises:
            RegistryError: there is nothing to go back to.
        """
        if len(self.history) < 2:
            raise RegistryError(
                f"channel {self.lineage}/{self.name} has pointed to {self.target or 'nothing'} only: nothing to "
                "go back to. Move it instead: registry.move('FM', 'stable', expected='FM@0007', to='FM@0006')."
            )
        return Channel(lineage=self.lineage, name=self.name, history=self.history[:-1], reached=self.reached)

    def expect(self, expected: str | None) -> None:
        """Raise ConflictError unless the channel points to ``expected``; None: unless there is no such channel."""
        if self.target != expected:
            raise ConflictError(
                f"channel {self.lineage}/{self.name} points to {self.target or 'nothing'}, not to "
                f"{expected or 'nothing'} as expected: somebody else has moved it. Read it again and decide anew."
            )


def names(root: Path, lineage: str) -> list[str]:
    """Of all channels of ``lineage``, sorted."""
    return sorted(path.stem for path in (root / lineage / "channels").glob("*.json") if not path.name.startswith("."))


def read(root: Path, lineage: str, name: str) -> Channel:
    """A channel; one without a history if there is none of that name.

    Raises:
        RegistryError: a bad name, or a damaged file.
    """
    path = _path(root, lineage, name)
    try:
        value = record.read(path, remedy=REMEDY)
    except FileNotFoundError:
        return Channel(lineage=lineage, name=name)
    return Channel(lineage=lineage, name=name, history=tuple(value["history"]), reached=value["reached"])


def write(root: Path, channel: Channel) -> None:
    """Atomically replace a channel."""
    value = {"history": list(channel.history), "reached": channel.reached}
    record.write(_path(root, channel.lineage, channel.name), value)


def remove(root: Path, channel: Channel) -> None:
    """Forget a channel and its history."""
    path = _path(root, channel.lineage, channel.name)
    path.unlink()
    files.fsync_directory(path.parent)


def _path(root: Path, lineage: str, name: str) -> Path:
    folder = root / check_name(lineage, what="lineage") / "channels"
    return folder / f"{check_name(name, what='channel')}.json"
