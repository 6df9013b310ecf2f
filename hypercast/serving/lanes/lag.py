"""How far behind an event loop is: what a request has waited before anything could be done about it."""

import asyncio
import time

EVERY = 0.01
"""Seconds between two looks."""
KEPT = 0.7
"""Share of what was seen that is still believed at the next look: a moment's lag is of no account."""


class Lag:
    """Seconds by which timers of the running event loop are late, as a moving average; 0 before it was ever asked."""

    def __init__(self) -> None:
        self.latest = 0.0
        """What was seen last; may be read by any thread."""
        self._loop: asyncio.AbstractEventLoop | None = None

    def seconds(self) -> float:
        """Called in the event loop; the first call begins to look."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._look(loop, time.monotonic())
        return self.latest

    def _look(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        now = time.monotonic()
        self.latest = KEPT * self.latest + (1 - KEPT) * (now - due)
        if self._loop is loop:
            loop.call_later(EVERY, self._look, loop, now + EVERY)
