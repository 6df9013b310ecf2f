"""The same run once more while its processes are killed at random: does it end as it ended when it was left alone?"""

import os
import random
import signal
import threading
from pathlib import Path

from hypercast.runtime.ray_engine import RayEngine
from transfer import predictions

LONGEST_PAUSE = 4.0  # seconds between two kills


class Killer(threading.Thread):
    """Kills processes of an engine's jobs, one at a time, no process twice, until ``kills`` are dead or :meth:`stop`.

    Attributes: ``done``, how many it has killed.
    """

    def __init__(self, engine: RayEngine, *, kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.kills = kills
        self.done = 0
        self._engine = engine
        self._random = random.Random(seed)
        self._enough = threading.Event()

    def run(self) -> None:
        killed: set[int] = set()
        while self.done < self.kills and not self._enough.wait(self._random.uniform(0, LONGEST_PAUSE)):
            alive = [job.pid for job in self._engine.jobs if job.pid is not None and job.pid not in killed]
            if not alive:
                continue  # all of them are being started
            pid = self._random.choice(alive)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # it ended by itself
                continue
            killed.add(pid)
            self.done += 1

    def stop(self) -> None:
        """Kill no more."""
        self._enough.set()
        self.join()


def same_predictions(run: Path, other: Path) -> bool:
    """Whether two run folders hold the same predictions to the bit, of the same surfaces and windows."""
    surfaces = predictions.surfaces(run)
    if not surfaces or surfaces != predictions.surfaces(other):
        return False
    return all(
        predictions.windows(run, surface) == predictions.windows(other, surface)
        and all(
            predictions.read(run, surface=surface, window=window).equals(
                predictions.read(other, surface=surface, window=window)
            )
            for window in predictions.windows(run, surface)
        )
        for surface in surfaces
    )
