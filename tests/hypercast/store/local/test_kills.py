"""A killed writer leaves nothing half-written, whatever it was doing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hypercast.store.local.steps import Step

HERE = Path(__file__).parent


def check(root: Path, kills: int) -> None:
    command = [sys.executable, str(HERE / "kills.py"), str(root), str(kills)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(HERE.parents[3])}, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["wrong"] == [] and seen["left"] == [] and not seen["torch"]
    assert sum(seen["kills"].values()) == kills and set(seen["kills"]) == set(Step) and all(seen["kills"].values())
    assert all(seen["reads"])


def test_twenty_kills(tmp_path: Path) -> None:
    check(tmp_path / "store", 20)


@pytest.mark.slow
def test_hundreds_of_kills(tmp_path: Path) -> None:
    check(tmp_path / "store", 270)
