"""Import of the whole Complete Journey data set, as-of features and validation included: seconds and peak memory."""

import resource
import tempfile
import time
from pathlib import Path

from streaming.importers.complete_journey import CompleteJourney
from streaming.validate import validate


def measure() -> dict[str, float]:
    """Import into a temporary folder, in this process. Peak memory is the process's, in GiB."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        dataset = CompleteJourney.Config().build(Path(folder) / "journey")
        imported = time.perf_counter()
        validate(dataset)
        validated = time.perf_counter()
        requests = sum(dataset.requests(window.index, columns=["request_id"]).num_rows for window in dataset.windows)
    return {
        "import_seconds": round(imported - begun, 1),
        "validate_seconds": round(validated - imported, 1),
        "requests": requests,
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
