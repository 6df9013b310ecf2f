"""Freed memory stays with the process once it was asked to keep it."""

import platform
import subprocess
import sys

import pytest

MEASURE = """
from pathlib import Path
{prepare}
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
block = bytearray(96 * 2**20)
before = resident()
del block
print(before - resident())
"""


def returned(prepare: str) -> int:
    """Bytes that a process gives back when it frees 96 MiB."""
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE.format(prepare=prepare)], capture_output=True, text=True, check=True
    )
    return int(ended.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_is_kept() -> None:
    assert returned("") > 64 * 2**20
    asked = "from hypercast.training.memory import keep_freed_memory; assert keep_freed_memory()"
    assert returned(asked) < 2**20
