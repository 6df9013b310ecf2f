"""Memory of a family of processes."""

import os
import subprocess
import sys
import time

from benchmarks.memory import PeakMemory, descendants, pss

GRANDCHILD = "import time; block = bytearray(200 * 2**20); print('there', flush=True); time.sleep(600)"
CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {GRANDCHILD!r}])"


def test_the_peak_counts_grandchildren_and_outlives_them() -> None:
    with PeakMemory() as memory:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        family = descendants(os.getpid())
        assert process.pid in family
        (grandchild,) = descendants(process.pid)[1:]
        assert pss(grandchild) > 200 * 2**20
        while memory.processes < 3:
            time.sleep(0.05)
        os.killpg(process.pid, 9)
        process.wait()
        assert pss(process.pid) == 0
    assert memory.gib > 0.2 and memory.processes >= 3
