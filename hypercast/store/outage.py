"""When an engine does not answer: who asks waits for it and is told, or goes on without."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from hypercast.store.engine import UnreachableError

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class Outage:
    """Knows that an engine was out of reach, so that not every read waits for it. Says so once, and when it ends."""

    def __init__(self, *, wait: bool, ask_again: float) -> None:
        """``wait``: errors are raised; ``ask_again``: seconds after which an engine is asked again, if they are not."""
        self._wait = wait
        self._ask_again = ask_again
        self._until: float | None = None

    def ask(self, question: Callable[[], _T]) -> _T | None:
        """The answer; None if the engine is out of reach, or was a moment ago.

        Raises:
            UnreachableError: it is out of reach, and that is to be raised.
        """
        if self._until is not None and time.monotonic() < self._until:
            return None
        try:
            answer = question()
        except UnreachableError as error:
            if self._wait:
                raise
            if self._until is None:
                _logger.warning("online store: zeros are read until the engine answers again (%s)", error)
            self._until = time.monotonic() + self._ask_again
            return None
        if self._until is not None:
            _logger.warning("online store: the engine answers again")
            self._until = None
        return answer
