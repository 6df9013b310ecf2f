"""How much of this process is in main memory, and how much was at most."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Used:
    """Bytes since the beginning of the block. ``grown``: what is left of them at its end; ``most``: at any time."""

    grown: int = 0
    most: int = 0


@contextlib.contextmanager
def memory() -> Iterator[Used]:
    """Of the block; filled in at its end. The kernel's peak is set back first, so that no earlier one hides it."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    used, before = Used(), _now()["VmRSS"]
    yield used
    after = _now()
    used.grown, used.most = after["VmRSS"] - before, after["VmHWM"] - before


def _now() -> dict[str, int]:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return {name: int(kilobytes) << 10 for name, kilobytes in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.M)}
