"""Newer models take the place of those in use, and no request notices: loaded beside them, then one assignment."""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from hypercast.serving.metrics import Metrics
from hypercast.serving.models.bundle import Bundle
from streaming.errors import UserError

_logger = logging.getLogger(__name__)


class Loader(Protocol):
    """Opens bundles (:class:`hypercast.serving.models.bundle.BundleLoader`)."""

    def newest(self) -> str: ...

    def load(self) -> Bundle: ...


class Swap:
    """Holds the bundle in use, and looks for newer ones.

    A request reads :attr:`current` once and keeps what it got; a bundle is let go of when the last such request ends.

    Args:
        loader: opens bundles.
        warm: called with a new bundle before it is used, so that no request pays for first-time work.
        every: seconds between two looks.
    """

    def __init__(self, *, loader: Loader, warm: Callable[[Bundle], None], every: float, metrics: Metrics) -> None:
        self._loader, self._warm, self._every, self._metrics = loader, warm, every, metrics
        self._ended = threading.Event()
        self._looking = threading.Lock()
        self._current = loader.load()
        self._use(self._current)
        self._thread = threading.Thread(target=self._run, name="swap", daemon=True)
        self._thread.start()

    @property
    def current(self) -> Bundle:
        """The bundle in use."""
        return self._current

    def look(self) -> bool:
        """Load what is newer than the bundle in use, if there is anything; returns whether there was.

        Raises:
            UserError: it cannot be loaded, as may anything that loading or warming it raises; the bundle in use stays.
        """
        with self._looking:
            if self._loader.newest() == self._current.version:
                return False
            bundle = self._loader.load()
            if bundle.version == self._current.version:
                return False
            self._use(bundle)
        self._metrics.swaps.labels("swapped").inc()
        _logger.info("now serving %s", bundle.version)
        return True

    def close(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()

    def _use(self, bundle: Bundle) -> None:
        self._warm(bundle)
        self._current = bundle  # one reference: whoever reads it sees the old or the new, whole
        if bundle.watermark is not None:
            self._metrics.watermark.set(bundle.watermark / 1e6)

    def _run(self) -> None:
        told = ""
        while not self._ended.wait(self._every):
            try:
                self.look()
                told = ""
            except Exception as error:  # whatever is wrong with newer models, those in use answer
                self._metrics.swaps.labels("failed").inc()
                if repr(error) != told:  # once, and not every two seconds
                    told = repr(error)
                    known = isinstance(error, UserError | OSError)
                    message = "%s stays in use: newer models cannot be loaded: %s"
                    _logger.warning(message, self._current.version, error if known else told, exc_info=not known)
