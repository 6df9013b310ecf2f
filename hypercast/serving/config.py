"""What a service is: the key ``serving`` of a platform file."""

import ipaddress
from pathlib import Path
from typing import Literal

import pydantic

from hypercast.serving.features.state import FeatureState
from hypercast.serving.precision.compact import Precision
from hypercast.serving.precision.probe import Probe
from hypercast.serving.precision.watch import AccuracyWatch
from streaming.config import Config

Mode = Literal["expert", "cached", "live"]
"""Which tiers answer: the expert alone; the expert with vectors of the online store; with vectors computed now."""


class Limits(Config):
    """What one client can ask for. What is over a limit is refused before anything is computed.

    Attributes:
        items: candidates of a request.
        events: engagements of one post.
        body_bytes: of a request's body.
        header_bytes: of a request's line and headers together.
        header_seconds: from opening a connection, or from the end of the last answer once bytes come, until a request's
            headers are there; also for a TLS handshake.
        body_seconds: from then until its body is there.
        write_seconds: for which answers may wait for a client that does not read them.
        idle_seconds: for which a connection may rest between two requests.
        connections: open at a time; a further one is closed at once.
        waiting: requests that wait to be scored; a further one is told to come again (503).
        rate: requests a second; None for no limit. A burst of as many is let through.
    """

    items: int = pydantic.Field(default=1000, ge=1)
    events: int = pydantic.Field(default=1000, ge=1)
    body_bytes: int = pydantic.Field(default=1 << 18, ge=1024)
    header_bytes: int = pydantic.Field(default=1 << 14, ge=1024)
    header_seconds: float = pydantic.Field(default=5.0, gt=0)
    body_seconds: float = pydantic.Field(default=10.0, gt=0)
    write_seconds: float = pydantic.Field(default=10.0, gt=0)
    idle_seconds: float = pydantic.Field(default=60.0, gt=0)
    connections: int = pydantic.Field(default=512, ge=1)
    waiting: int = pydantic.Field(default=128, ge=1)
    rate: float | None = pydantic.Field(default=None, gt=0)


class Live(Config):
    """How the foundation model answers while a request waits.

    Attributes:
        deadline_ms: after a request has come, when its answer is to be under way; what the foundation model cannot say
            by then, less what the expert needs, is answered from a lower rung.
        batch: requests that it scores at once, at most, and never more than their deadlines leave time for.
        behind: requests that it did not get to, kept for when it is idle; the newest are kept. 0 for none.
        behind_after_ms: how long it must have been idle; a request that comes while it is at one waits for that.
        user_cache_mib: of encoded histories, kept for their users' next requests, at most, of each snapshot that
            answers; those last used are kept. 0 for none.
    """

    deadline_ms: float = pydantic.Field(default=35.0, gt=0)
    batch: int = pydantic.Field(default=8, ge=1)
    behind: int = pydantic.Field(default=256, ge=0)
    behind_after_ms: float = pydantic.Field(default=50.0, ge=0)
    user_cache_mib: int = pydantic.Field(default=64, ge=0)


class ServedPrecision(Precision):
    """How models are made compact before they answer, and how that is watched (docs/precision.md).

    Attributes:
        requests: that kernels are chosen by: the last ones that a model has learned from.
        watch: over the answers of compact models; its bound is the watch's own.
        statistics: of what flows through their layers while they answer; inputs are not kept.
    """

    requests: int = pydantic.Field(default=128, ge=1)
    watch: AccuracyWatch.Config = AccuracyWatch.Config()
    statistics: Probe.Config = Probe.Config()

    @pydantic.field_validator("statistics")
    @classmethod
    def _keeps_nothing(cls, statistics: Probe.Config) -> Probe.Config:
        if statistics.keep:
            raise ValueError(f"statistics.keep is {statistics.keep}, and inputs of live traffic are not kept. Give 0")
        return statistics


class ServingConfig(Config):
    """Attributes:

    mode: see :data:`Mode`; a request is answered by the tiers of the mode, or fewer.
    arm: of the experts that answer; null: the first of these that was exported: treated,
        tae_aux_head_adapter, tae, logit_residual, control.
    engine: ``local``, one process; ``ray``, ``replicas`` of it behind Ray Serve.
    host, port: where to listen. Other machines are let in only with a token, or with ``open_to_all``.
    token_file, token_env: where the bearer token is, if requests need one: a file, or an environment variable.
    open_to_all: listen for other machines without a token.
    certificate, key: PEM files; with both, TLS.
    follow: ``stream``: the feature state follows the topic of engagements that the platform learns from, from where the
        windows end that are sealed when the service starts; needs ``stream`` in the platform file. Engagements can be
        posted besides. null: they are posted only.
    clock: ``wall``: requests are of the moment they come; ``given``: they bring their time, as when a log is played
        again.
    state: what is held in memory of users and engagements, and which dense columns callers send.
    refresh_seconds: how often newer snapshots and experts are looked for.
    commit_seconds: how often what was computed is made durable in the online store and in the log of what was served.
    keep: whether vectors computed live go into the online store, and what was served into the log.
    threads: of torch in each of the three scoring threads.
    precision: fewer bits for the models that answer, ``{}`` for the usual bounds; null: float32.
    """

    mode: Mode = "live"
    arm: str | None = None
    engine: Literal["local", "ray"] = "local"
    replicas: int = pydantic.Field(default=2, ge=1)
    host: str = "127.0.0.1"
    port: int = pydantic.Field(default=8471, ge=0, le=65535)
    token_file: Path | None = None
    token_env: str | None = None
    open_to_all: bool = False
    certificate: Path | None = None
    key: Path | None = None
    limits: Limits = Limits()
    state: FeatureState.Config = FeatureState.Config()
    live: Live = Live()
    follow: Literal["stream"] | None = None
    clock: Literal["wall", "given"] = "wall"
    refresh_seconds: float = pydantic.Field(default=2.0, gt=0)
    commit_seconds: float = pydantic.Field(default=5.0, gt=0)
    keep: bool = True
    threads: int = pydantic.Field(default=1, ge=1)
    precision: ServedPrecision | None = None

    @pydantic.model_validator(mode="after")
    def _both_or_neither(self) -> "ServingConfig":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("TLS needs both certificate and key. Give the other too, or neither")
        if self.token_file is not None and self.token_env is not None:
            raise ValueError("token_file and token_env name one token twice. Give one of them")
        return self

    @pydantic.model_validator(mode="after")
    def _others_need_a_token(self) -> "ServingConfig":
        guarded = self.token_file is not None or self.token_env is not None
        if not (is_loopback(self.host) or guarded or self.open_to_all):
            raise ValueError(
                f"host {self.host!r} lets other machines in, and there is no token. Give token_file or token_env; or "
                "host: 127.0.0.1; or open_to_all: true, if something in front of the service keeps strangers out"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``; names other than ``localhost`` are taken to be for others."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
