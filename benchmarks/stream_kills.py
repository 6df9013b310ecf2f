"""Kills runs of a streamed platform at random moments; run as a program, so that they all share one slow start.

``python -m benchmarks.stream_kills PLATFORM.yaml RUNS KILLS SEED`` runs the platform in forks of this process, in
folders RUNS/0, RUNS/1 and so on, a new one whenever one is finished, and sends SIGKILL to each fork after a random
time, until KILLS were sent; the last is then left to finish. Nobody kills the first. Prints one JSON object: kills, and
the folders.
"""

import json
import os
import random
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import confluent_kafka  # noqa: F401  as is mlflow: imported here once, and not again in every fork
import matplotlib.pyplot  # noqa: F401
import mlflow  # noqa: F401

from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.platform import Platform
from streaming import config as configuration


def fork(config: PlatformConfig) -> int:
    """Start a run; returns the process id. Everything that it says goes to a file beside its folder."""
    child = os.fork()
    if child:
        return child
    try:
        log = os.open(config.run.with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        Platform(config).run(lambda message, share: None)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait(child: int, seconds: float | None) -> bool:
    """Wait for a process, at most so long; returns whether it has ended, and raises if it has failed."""
    watched = os.pidfd_open(child)
    try:
        ended = bool(select.select([watched], [], [], seconds)[0])
    finally:
        os.close(watched)
    if not ended:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a run ended with status {status}")
    return status == 0


def main(file: Path, runs: Path, wanted: int, seed: int) -> dict[str, object]:
    config, delays = configuration.load(file, PlatformConfig), random.Random(seed)
    prepared, kills, patience, finished = config.run, 0, 0.0, True
    folders: list[Path] = []
    while kills < wanted or not finished:
        if finished:
            folders.append(Path(shutil.copytree(prepared, runs / str(len(folders)))))
        begun = time.monotonic()
        limit = delays.uniform(0.0, patience) if patience and kills < wanted else None
        finished = wait(fork(config.model_copy(update={"run": folders[-1]})), limit)
        if finished:
            patience = patience or 0.6 * (time.monotonic() - begun)  # of the first, which nobody kills
        else:
            kills += 1
    return {"kills": kills, "folders": [str(folder) for folder in folders]}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
