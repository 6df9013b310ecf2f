"""Puts a service together from a platform's run, and lets it listen: one process, or replicas behind Ray Serve."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from rich.console import Console

from hypercast.errors import StoreError
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.ray_engine import address_of, connect
from hypercast.runtime.stream import folder_of, workspace_of
from hypercast.serving.config import ServingConfig
from hypercast.serving.features.follower import Tail
from hypercast.serving.features.state import FeatureState
from hypercast.serving.http import protocol
from hypercast.serving.http.app import create_app
from hypercast.serving.http.guard import read_tokens
from hypercast.serving.logs.intake import trim
from hypercast.serving.logs.served import ServedLog
from hypercast.serving.models.bundle import BundleLoader
from hypercast.serving.service import Service
from hypercast.store.online import OnlineStore
from streaming.dataset import Dataset
from streaming.errors import ConfigError
from streaming.sources.sealed import records

FOLDER = "serving"
"""In the run folder: the journal of engagements, and the log of what was served."""
JOURNAL = "events.jsonl"
GRACE_SECONDS = 10
"""For which requests that have begun may go on when the service is told to end."""
REPLICA_CPUS = 0.5
"""That each replica asks Ray for."""


def run(config: PlatformConfig) -> None:
    """Serve until interrupted, as ``config.serving`` says.

    Raises:
        StoreError: the run folder is not there, or has nothing that could answer.
        ConfigError: tokens cannot be read, or there is no stream to follow.
        DataError: no data set where the configuration says.
    """
    serving = config.serving or ServingConfig()
    read_tokens(serving)  # fails before anything is opened
    if not config.run.is_dir():
        raise StoreError(f"{config.run}: no such run folder. Run the platform first: hypercast run PLATFORM.yaml.")
    # Not where another service has it open: it goes on in that file.
    trim(config.run / FOLDER / JOURNAL, since=workspace_of(config, config.run).dataset.windows[-1].end)
    if serving.engine == "ray":
        _run_on_ray(config, serving)
    else:
        _run_here(config, serving)


def open_service(config: PlatformConfig) -> Service:
    """Open everything that one process serves from. The caller closes the service."""
    serving = config.serving or ServingConfig()
    workspace = workspace_of(config, config.run)
    tail = tail_of(config, workspace.dataset)
    folder = config.run / FOLDER
    return Service(
        config=serving,
        workspace=workspace,
        state=FeatureState.open(workspace, as_of=workspace.dataset.windows[-1].end, config=serving.state),
        loader=BundleLoader(config=config, workspace=workspace, arm=serving.arm),
        store=store_of(config, serving),
        log=ServedLog(folder / "served", tasks=workspace.inputs.tasks) if serving.keep else None,
        journal=folder / JOURNAL,
        tail=tail,
    )


def settle() -> None:
    """Take what this process has loaded out of every later collection: a full one over a service's objects, half a
    million of them, answers nobody for 0.3 s.

    For a process that does nothing but serve: what is unreachable by then is freed here, what becomes so later only by
    its reference counts.
    """
    gc.collect()
    gc.freeze()


def store_of(config: PlatformConfig, serving: ServingConfig) -> OnlineStore | None:
    """The online store that is read; None if there is none, or nothing reads it."""
    return None if config.online is None or serving.mode == "expert" else config.online.build(config.run / "online")


def tail_of(config: PlatformConfig, dataset: Dataset) -> Tail | None:
    """Where the stream goes on after ``dataset``, the windows sealed so far; None if it is not to be followed.

    Raises:
        ConfigError: it is to be followed, and there is none.
        StoreError: the record of the last window is not there.
    """
    if config.serving is None or config.serving.follow is None:
        return None
    if config.stream is None:
        raise ConfigError(
            "serving.follow: the platform has no stream to follow. Give `stream:` (docs/streams.md), or follow: null; "
            "POST /v1/events brings engagements too."
        )
    last, folder = dataset.windows[-1].index, folder_of(config.run)
    sealed = next((sealed for sealed in records(folder) if sealed.window == last), None)
    if sealed is None:
        raise StoreError(
            f"{folder}: no record of window {last}, and so of where the stream goes on after it. The platform restores "
            "it from its checkpoints: hypercast run PLATFORM.yaml."
        )
    return Tail(config=config.stream, catalogue=Dataset.open(config.dataset.path), sealed=sealed)


def listen(serving: ServingConfig) -> socket.socket:
    """A socket that listens where ``serving`` says.

    Raises:
        StoreError: the port is taken, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((serving.host, serving.port))
    except OSError as error:
        listening.close()
        raise StoreError(
            f"serving: cannot listen on {serving.host}:{serving.port} ({error.strerror}). Give another: --port 0 takes "
            "a free one."
        ) from None
    listening.listen(2048)
    return listening


def server(service: Service, app: FastAPI) -> uvicorn.Server:
    """Uvicorn over ``app``, with guarded connections; ``serve(sockets=[listen(...)])`` runs it."""
    serving = service.config
    config = uvicorn.Config(
        app,
        **protocol.settings(serving.limits, service.metrics),
        loop="uvloop",
        log_level="warning",
        ssl_certfile=serving.certificate,
        ssl_keyfile=serving.key,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return protocol.GuardedServer(config, limits=serving.limits)


def _run_here(config: PlatformConfig, serving: ServingConfig) -> None:
    listening = listen(serving)
    with listening, contextlib.closing(open_service(config)) as service:
        app = create_app(service)
        settle()
        _tell(serving, listening.getsockname()[1], service.models()["version"])
        server(service, app).run(sockets=[listening])


def _tell(serving: ServingConfig, port: int, version: str) -> None:
    """Say on standard error where the service listens."""
    scheme = "https" if serving.certificate is not None else "http"
    host = f"[{serving.host}]" if ":" in serving.host else serving.host
    Console(stderr=True).print(
        f"serving {version} ({serving.mode}) on {scheme}://{host}:{port}", highlight=False, soft_wrap=True
    )


def _run_on_ray(config: PlatformConfig, serving: ServingConfig) -> None:
    with on_ray(config, serving):
        _tell(serving, serving.port, f"{serving.replicas} replicas")
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(asyncio.Event().wait())


@contextlib.contextmanager
def on_ray(config: PlatformConfig, serving: ServingConfig) -> Iterator[None]:
    """Inside, the application runs in ``replicas`` processes behind Ray Serve: of the cluster that ``ray`` names, or of
    a Ray of its own. Other applications of a cluster stay as they are.

    Raises:
        ConfigError: the cluster cannot be joined.
        StoreError: TLS is asked for, which Ray Serve's proxy does not offer; or the cluster serves a platform of this
            name already.
    """
    import ray
    from ray import serve

    if serving.certificate is not None:
        raise StoreError("serving: engine ray has no TLS of its own. Put a proxy with TLS in front, or engine: local.")

    def replica() -> FastAPI:  # runs in each of them; Serve takes it for a builder only if it is a function
        app = create_app(open_service(config))
        settle()
        return app

    connected = ray.is_initialized()
    shared = connected or address_of(config.ray) is not None
    if not connected:
        connect(config.ray, serving.replicas * REPLICA_CPUS)
    application = f"hypercast-{config.name}"
    try:
        serve.start(http_options={"host": serving.host, "port": serving.port})
        if application in serve.status().applications:
            raise StoreError(
                f"serving: the cluster has {application!r} already. End that service, or name the platform otherwise."
            )
        try:
            deployment = serve.deployment(**deployment_options(serving))(serve.ingress(replica)())
            serve.run(deployment.bind(), name=application, route_prefix="/")
            yield
        finally:
            serve.delete(application)
    finally:
        if not shared:
            serve.shutdown()
        if not connected:
            ray.shutdown()


def deployment_options(serving: ServingConfig) -> dict[str, Any]:
    """What Ray Serve is told of the application: how many replicas, and how many requests wait for them.

    Each replica is given ``limits.waiting`` requests at a time. As many more wait in the proxy, which answers 503 to
    the next one; by itself it would keep any number.
    """
    return {
        "num_replicas": serving.replicas,
        "max_ongoing_requests": serving.limits.waiting,
        "max_queued_requests": serving.limits.waiting,
        "ray_actor_options": {"num_cpus": REPLICA_CPUS},
    }
