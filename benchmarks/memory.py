"""What a process and all its descendants take of the machine's memory, shared pages counted once."""

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_PAUSE_SECONDS = 0.5


class PeakMemory:
    """Inside, samples the proportional set size (PSS) of this process and its descendants.

    ``gib``: the largest sum; ``processes``: the most there were, which need not be the same moment.
    """

    def __init__(self) -> None:
        self.gib = 0.0
        self.processes = 0
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._sampler.join()

    def _sample(self) -> None:
        while True:
            family = descendants(os.getpid())
            total = sum(pss(each) for each in family) / 2**30
            self.gib, self.processes = max(self.gib, total), max(self.processes, len(family))
            if self._over.wait(_PAUSE_SECONDS):
                return


def descendants(root: int) -> list[int]:
    """Ids of ``root`` and of all processes that come of it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()  # the name before it may hold anything
        except OSError:
            continue  # it has ended in between
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [root]
    for each in found:
        found += children.get(each, [])
    return found


def pss(process: int) -> int:
    """Bytes of a process, pages shared among N processes counted as 1/N; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
