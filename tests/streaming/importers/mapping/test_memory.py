"""An import's memory is bounded by its windows and ids, not by the size of its files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest
import yaml

from tests.streaming.importers.mapping.shop import DAY, START

ROWS, PART = 1_000_000, 50_000
USERS, ITEMS = 20_000, 2_000
PADDING = "x" * 100  # ids are long, as those that systems generate are
BOUND = 256 << 20  # bytes above what the program itself takes; the rows alone take more as one table

IMPORT = """
import json, re, sys
from pathlib import Path
import pandas  # Arrow imports it at the first array that it is given
from streaming import config
from streaming.importers.mapping.config import MappingConfig
from streaming.importers.mapping.importer import Mapping

def peak():
    # Not getrusage: that begins with what the parent process had.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024

folder = Path(sys.argv[1])
mapping = Mapping(config=config.load(folder / "mapping.yaml", MappingConfig), folder=folder)
before = peak()
dataset = mapping.build(folder / "data")
print(json.dumps({"before": before, "peak": peak(), "windows": len(dataset.windows)}))
"""


@pytest.mark.slow
def test_300_megabytes_are_imported_in_less_memory_than_they_fill(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with (tmp_path / "log.csv").open("w") as file:
        file.write("user,item,ts,page,clicked\n")
        for start in range(0, ROWS, PART):
            time = START + (start + np.arange(PART)) * 30 * DAY // ROWS
            user, item = random.integers(0, USERS, PART), random.integers(0, ITEMS, PART)
            click = random.random(PART) < 0.1
            rows = zip(user.tolist(), item.tolist(), time.tolist(), click.astype(int).tolist(), strict=True)
            file.writelines(
                f"user-{u:07d}-{PADDING}-{PADDING},item-{i:07d}-{PADDING},{t},{('home', 'search')[i % 2]},{c}\n"
                for u, i, t, c in rows
            )
    assert (tmp_path / "log.csv").stat().st_size > 300_000_000
    mapping = {
        "name": "large",
        "rows": {"files": "log.csv"},
        "user": "user",
        "item": "item",
        "time": "ts",
        "surface": "page",
        "tasks": [{"name": "click", "column": "clicked"}],
        "windows": "1d",
    }
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    done = subprocess.run([sys.executable, "-c", IMPORT, tmp_path], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["windows"] in (30, 31)
    assert found["peak"] - found["before"] < BOUND
    assert pyarrow.csv.read_csv(tmp_path / "log.csv").nbytes > BOUND
