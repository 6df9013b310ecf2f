"""What a channel names, asked for no more often than needed.

A pointer is believed for a while; since when a snapshot is in a channel never changes, and is remembered.
"""

import time

from hypercast.store.channels import Channels


class Followed:
    """Channels as their readers see them; raises as :class:`hypercast.store.channels.Channels`."""

    def __init__(self, channels: Channels, *, believed_for: float) -> None:
        """``believed_for``: seconds for which a pointer is not asked for again."""
        self._channels = channels
        self._believed_for = believed_for
        self._named: dict[tuple[str, str], tuple[float, str]] = {}
        self._since: dict[tuple[str, str], int] = {}

    def current(self, lineage: str, channel: str) -> str | None:
        """Name of the snapshot that the channel names; None for nothing."""
        believed = self._named.get((lineage, channel))
        if believed is not None and time.monotonic() < believed[0]:
            return believed[1]
        name = self._channels.current(lineage, channel)
        if name is not None and self._believed_for:
            self._named[lineage, channel] = time.monotonic() + self._believed_for, name
        return name

    def at(self, lineage: str, channel: str, now: int) -> str | None:
        """What the channel names, or what it named at ``now`` (microseconds UTC), if that is earlier."""
        name = self.current(lineage, channel)
        if name is None:
            return None
        since = self._since.get((name, channel))
        if since is None:
            since = self._channels.marked(name, channel)
            if since is None:  # being published
                return name
            self._since[name, channel] = since
        return name if since <= now else self._channels.then(lineage, channel, now)

    def forget(self) -> None:
        """Ask for everything again."""
        self._named.clear()
        self._since.clear()
