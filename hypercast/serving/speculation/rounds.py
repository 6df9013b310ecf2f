"""Rounds of speculation beside a platform's run: as of the end of its log, into its online store."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from hypercast.errors import ConflictError, StoreError
from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.stream import dataset_of, workspace_of
from hypercast.serving.speculation.speculator import Speculator
from hypercast.store.engine import UnreachableError
from streaming.dataset import Window
from streaming.errors import ConfigError

COMPUTES = "penultimate"
"""The representation that a round computes."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a round did, and what one would have been worth a window earlier.

    Attributes:
        snapshot: name of the one that computed.
        as_of: microseconds UTC.
        pairs, users: of which vectors were put.
        seconds, processor_seconds: that predicting and computing them took.
        window: index of the last window that was over.
        asked: candidates that were asked for in it.
        covered: those of them that a round at its start would have computed, with this budget.
    """

    snapshot: str
    as_of: int
    pairs: int
    users: int
    seconds: float
    processor_seconds: float
    window: int
    asked: int
    covered: int


class Rounds:
    """Speculates for a platform's run folder. Each round opens what there is by then.

    Args:
        config: the platform's; ``run`` is the folder.
        speculator: how; the lineage and the scorer are the platform's.

    Raises:
        ConfigError: the platform has no online store, or one of another representation than is computed.
        StoreError: there is no such run folder.
    """

    def __init__(self, *, config: PlatformConfig, speculator: Speculator.Config) -> None:
        if not config.run.is_dir():
            raise StoreError(f"{config.run}: no such run folder. Run the platform first: hypercast run PLATFORM.yaml.")
        if config.online is None or config.online.representation != COMPUTES:
            kept = "there is none" if config.online is None else f"it keeps {config.online.representation!r}"
            raise ConfigError(
                f"online: {kept}, and speculation needs a store of {COMPUTES!r} vectors. Example: online: "
                f"{{representation: {COMPUTES}}}"
            )
        torch.set_num_threads(config.threads)
        published = config.foundation.publisher
        self.config = config
        self.store = config.online.build(config.run / "online")
        self.registry = Registry(config.run / "registry")
        self._speculator = speculator.model_copy(update={"lineage": published.lineage, "scorer": published.scorer})

    def close(self) -> None:
        """Let go of the store."""
        self.store.close()

    def newest(self) -> tuple[str, int]:
        """Name of the snapshot that a round would compute with now, and the time that it would be as of; cheap.

        Raises:
            RegistryError: nothing is published yet.
        """
        end = dataset_of(self.config, self.config.run).windows[-1].end
        return self.registry.latest(self._speculator.lineage, as_of=end).name, end

    def run(self, as_of: int | None = None) -> Round:
        """One round: the vectors are computed, and readers of the store find them.

        Args:
            as_of: microseconds UTC, nothing that happened then or later is read; None for the end of the log.

        Raises:
            ConfigError: ``as_of`` is after the end of the log, or before that of its first window.
            RegistryError: no snapshot had been trained by then.
            ConflictError: somebody else has published in the store meanwhile.
            UnreachableError: the store's server does not answer.
        """
        workspace = workspace_of(self.config, self.config.run)
        windows = workspace.dataset.windows
        now = windows[-1].end if as_of is None else as_of
        if not windows[0].end <= now <= windows[-1].end:
            meant, first, end = (np.datetime64(time, "us") for time in (now, windows[0].end, windows[-1].end))
            raise ConfigError(
                f"speculation as of {meant}: allowed is from the end of the first window, {first}, to the end of the "
                f"log, {end} (UTC). Leave it out for the latter."
            )
        last = next(window for window in reversed(windows) if window.end <= now)
        horizon = last.end - last.start
        speculator = self._speculator.build(
            model=self.config.foundation.model, workspace=workspace, registry=self.registry
        )
        begun, used = time.monotonic(), time.process_time()
        speculated = speculator.run(now, horizon=horizon)
        seconds, processor_seconds = time.monotonic() - begun, time.process_time() - used
        speculated.put(self.store)
        asked, covered = _coverage(speculator, last)
        return Round(
            snapshot=speculated.snapshot.name,
            as_of=now,
            pairs=len(speculated),
            users=len(speculated.users),
            seconds=round(seconds, 3),
            processor_seconds=round(processor_seconds, 3),
            window=last.index,
            asked=asked,
            covered=covered,
        )

    def keep_on(self, *, every: float, wait: Callable[[float], None] = time.sleep) -> Iterator[Round]:
        """A round, and another whenever there is a newer snapshot or more of the log; looks every ``every`` seconds.

        A round that loses against another writer, or finds no server, is logged and tried again at the next look.
        """
        done: tuple[str, int] | None = None
        while True:
            try:
                if self.newest() != done:
                    made = self.run()
                    done = made.snapshot, made.as_of
                    yield made
            except (ConflictError, UnreachableError) as error:
                _logger.warning("this round is tried again in %g seconds: %s", every, error)
            wait(every)


def _coverage(speculator: Speculator, window: Window) -> tuple[int, int]:
    """Candidates of a window, and those that a round at its start would have computed; computes none."""
    chosen = speculator.choose(window.start, horizon=window.end - window.start)
    asked = speculator.predictor.source.reader.between(window.start, window.end)
    return len(asked.item), int(speculator.predictor.was_predicted(asked, chosen.pairs).sum())
