"""Jobs as Ray actors: a process each, on this machine or a cluster.

What passes between jobs passes through this process, a number of a window or some metrics at a time; Ray's object store
stays all but empty. Everything large is in files that all jobs see.
"""

import logging
import math
import os
import socket
import uuid
from collections.abc import Mapping
from typing import Any

import pydantic

from hypercast.runtime.board import Board
from hypercast.runtime.engine import Job
from hypercast.runtime.supervision import Promise, SupervisedJob, Tally
from streaming.config import Config as BaseConfig
from streaming.errors import ConfigError

_ANSWER_SECONDS = 5.0
_MIB, _GIB = 2**20, 2**30
_logger = logging.getLogger(__name__)


class RayEngine:
    """Starts a Ray on this machine, or joins the one that it is told of. One that dies is started anew.

    Args:
        cpus: what all jobs together ask for. A Ray that is started here offers as many, also where there are fewer
            cores: jobs set their own number of threads, and the kernel shares the cores out.
        board: where each job's doings are shown.
    """

    class Config(BaseConfig):
        """How to use Ray. Attributes:

        address: of a running cluster, such as ``10.0.0.1:6379``; null joins the one that the environment variable
            RAY_ADDRESS names, and starts one on this machine if there is none. All machines see the run folder and the
            data set under the same paths.
        object_store_mib: main memory of Ray's object store, where one is started. Nothing large passes through it.
        dashboard: whether to serve Ray's dashboard where one is started, on 127.0.0.1 only; ``dashboard_port``: there.
        restarts: how often each job may die in a run and be started anew from its checkpoints.
        """

        address: str | None = None
        object_store_mib: int = pydantic.Field(default=100, ge=80)
        dashboard: bool = False
        dashboard_port: int = pydantic.Field(default=8265, ge=1024, le=65535)
        restarts: int = pydantic.Field(default=3, ge=0)

    def __init__(self, *, config: Config, cpus: float = 1.0, board: Board | None = None) -> None:
        import ray

        self.config = config
        self._board = board or Board()
        self._tally = Tally(most=config.restarts, namespace=f"hypercast-{uuid.uuid4().hex}")
        self._jobs: list[SupervisedJob] = []
        self._joined = ray.is_initialized()  # a process that has joined a cluster stays in it
        if not self._joined:
            connect(config, cpus)

    @property
    def jobs(self) -> list[SupervisedJob]:
        """Those that were started and not stopped."""
        return list(self._jobs)

    def start(self, job: Job) -> SupervisedJob:
        self._compare_with_cluster(job)
        self._jobs.append(SupervisedJob(job, board=self._board, tally=self._tally))
        return self._jobs[-1]

    def call(self, handle: SupervisedJob, method: str, *arguments: Any) -> Promise:
        return handle.call(method, *arguments)

    def result(self, promise: Promise) -> Any:
        return promise.future.result()

    def stop(self, handle: SupervisedJob) -> None:
        handle.kill()
        handle.join()
        self._jobs.remove(handle)

    def restarts(self) -> Mapping[str, int]:
        return dict(self._tally.restarts)

    def close(self) -> None:
        import ray

        for job in self._jobs:
            job.kill()  # all of them before any is waited for: one may wait for another
        for job in self._jobs:
            job.join()
        self._jobs.clear()
        if not self._joined:
            ray.shutdown()

    def _compare_with_cluster(self, job: Job) -> None:
        """Say so if the cluster is too small for all jobs: the job then waits for a machine to join."""
        import ray

        asked = [each.job.resources for each in self._jobs] + [job.resources]
        cpus, memory = sum(each.cpus or 0 for each in asked), sum(each.memory_gib for each in asked)
        there = ray.cluster_resources()
        if cpus > there.get("CPU", 0) or memory * _GIB > there.get("memory", 0):
            _logger.warning(
                "job '%s' waits until the cluster has grown: all jobs ask for %g CPUs and %.1f GiB, it has %g and "
                "%.1f. Lower `resources`, or add machines.",
                *(job.label, cpus, memory, there.get("CPU", 0), there.get("memory", 0) / _GIB),
            )


def address_of(config: RayEngine.Config) -> str | None:
    """Of the cluster to join; None where one is to be started on this machine."""
    return config.address or os.environ.get("RAY_ADDRESS")


def connect(config: RayEngine.Config, cpus: float) -> None:
    """Join the cluster that ``config`` names, or start one on this machine that offers at least ``cpus``.

    Raises:
        ConfigError: it cannot be joined.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    address = address_of(config)
    if address is not None:
        _require_answer(address)
        options |= {"address": address}
    else:
        options |= {"address": "local", "num_cpus": max(os.cpu_count() or 1, math.ceil(cpus))}
        options |= {"object_store_memory": config.object_store_mib * _MIB, "include_dashboard": config.dashboard}
        options |= {"dashboard_host": "127.0.0.1", "dashboard_port": config.dashboard_port}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError) as error:
        raise _unreachable(address or "local", error) from None


def _require_answer(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself would go on asking for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
        except OSError as error:
            raise _unreachable(address, error) from None


def _unreachable(address: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"ray.address: cannot join {address!r}: {error}. Give the address of a running cluster, such as 10.0.0.1:6379, "
        "or null, without RAY_ADDRESS in the environment, to start a Ray on this machine."
    )
