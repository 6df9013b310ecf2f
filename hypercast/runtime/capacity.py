"""How many machines a platform needs, from what a token, a candidate and a key cost (docs/scale.md).

Plain arithmetic: each part of the platform needs so much processor time, memory, network and disk; it gets machines of
its own, filled to a share of what they have; and the resource that asks for the most machines is the one that
saturates first.
"""

import math
from dataclasses import asdict, dataclass

import pydantic

from streaming.config import Config

DAY = 86_400.0
_GIB = 2.0**30
_CPU_SECONDS = 1e-6
_BITS = 8.0

RESOURCES = ("cores", "memory_gib", "network_gbit", "disk_gib")


class Workload(Config):
    """What is asked of the platform. Attributes:

    users: with a history.
    requests_per_day: that are answered, each for one surface.
    peak: rate of requests in the busiest hour over the day's mean.
    candidates: that a request ranks; ``logged``: of them whose outcome is learned from.
    history: engagements that the foundation model attends to; ``events_per_day``: that are added to histories.
    variants: experts a surface that learn from each of its requests; ``served``: of them that score it.
    live_share: share of requests whose vectors are computed when they are asked for; the rest are read.
    cached_keys: (user, item) vectors that are kept at a time.
    republished_share: share of the cached keys that is computed anew a day.
    """

    users: float = pydantic.Field(default=1e9, gt=0)
    requests_per_day: float = pydantic.Field(default=1e10, gt=0)
    peak: float = pydantic.Field(default=2.0, ge=1)
    candidates: float = pydantic.Field(default=100, gt=0)
    logged: float = pydantic.Field(default=10, gt=0)
    history: float = pydantic.Field(default=128, ge=0)
    events_per_day: float = pydantic.Field(default=1e10, ge=0)
    variants: float = pydantic.Field(default=4, ge=0)
    served: float = pydantic.Field(default=1, ge=0)
    live_share: float = pydantic.Field(default=0.1, ge=0, le=1)
    cached_keys: float = pydantic.Field(default=5e10, ge=0)
    republished_share: float = pydantic.Field(default=0.5, ge=0)


class Costs(Config):
    """What a unit of work costs: microseconds of one core, and bytes. Attributes:

    fm_train_us_per_token, fm_score_us_per_token: a token is an engagement, a candidate, or one of two of context.
    foundation_scale: floating-point operations a token of the foundation model that is planned, over those of the one
        that was measured.
    exchange_bytes_per_token: that workers of sharded training send to each other, vectors forth and gradients back.
    expert_train_us_per_candidate, expert_score_us_per_candidate: of one variant.
    request_us: of receiving, routing and answering a request.
    state_us_per_event: of adding an engagement to the online feature state.
    store_put_us_per_key, store_read_us_per_key: on the online store's side; ``store_client_us_per_key``: of either, on
        the other side.
    store_bytes_per_key: in memory, of a vector with its key; ``vector_bytes``: of it on the network.
    event_bytes: of an engagement in the online feature state; ``user_bytes``: of a user beside it.
    log_bytes_per_candidate: of the TAE log, on disk; ``request_bytes``: of a request and its engagements in the logs.
    log_days: for which both are kept. replicas: copies of the store and of the feature state.
    """

    fm_train_us_per_token: float = pydantic.Field(ge=0)
    fm_score_us_per_token: float = pydantic.Field(ge=0)
    foundation_scale: float = pydantic.Field(default=1.0, gt=0)
    exchange_bytes_per_token: float = pydantic.Field(ge=0)
    expert_train_us_per_candidate: float = pydantic.Field(ge=0)
    expert_score_us_per_candidate: float = pydantic.Field(ge=0)
    request_us: float = pydantic.Field(ge=0)
    state_us_per_event: float = pydantic.Field(ge=0)
    store_put_us_per_key: float = pydantic.Field(ge=0)
    store_read_us_per_key: float = pydantic.Field(ge=0)
    store_client_us_per_key: float = pydantic.Field(ge=0)
    store_bytes_per_key: float = pydantic.Field(ge=0)
    vector_bytes: float = pydantic.Field(ge=0)
    event_bytes: float = pydantic.Field(ge=0)
    user_bytes: float = pydantic.Field(ge=0)
    log_bytes_per_candidate: float = pydantic.Field(ge=0)
    request_bytes: float = pydantic.Field(ge=0)
    log_days: float = pydantic.Field(default=14, ge=0)
    replicas: float = pydantic.Field(default=2, ge=1)


class Host(Config):
    """One machine. ``utilisation``: share of each resource that is planned with."""

    cores: float = pydantic.Field(default=64, gt=0)
    memory_gib: float = pydantic.Field(default=512, gt=0)
    network_gbit: float = pydantic.Field(default=25, gt=0)
    disk_gib: float = pydantic.Field(default=8000, gt=0)
    utilisation: float = pydantic.Field(default=0.6, gt=0, le=1)


class Plan(Config):
    """Contents of a plan's file."""

    workload: Workload = Workload()
    costs: Costs
    host: Host = Host()


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a part of the platform needs, at the peak where it serves and on the mean of a day where it does not."""

    part: str
    cores: float = 0.0
    memory_gib: float = 0.0
    network_gbit: float = 0.0
    disk_gib: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Machines of one part.

    Attributes:
        hosts: how many.
        saturates: the resource that asks for them.
        load: share of each resource that is in use.
    """

    need: Need
    hosts: int
    saturates: str
    load: dict[str, float]


def pools(plan: Plan) -> list[Pool]:
    """Machines of every part, the largest pool first."""
    found = [_pool(need, plan.host) for need in needs(plan.workload, plan.costs)]
    return sorted(found, key=lambda pool: pool.hosts, reverse=True)


def needs(work: Workload, costs: Costs) -> list[Need]:
    """What every part needs."""
    mean = work.requests_per_day / DAY
    peak = mean * work.peak
    trained, scored = work.history + work.logged + 2, work.history + work.candidates + 2
    scale = costs.foundation_scale
    republished = work.cached_keys * work.republished_share / DAY
    per_user = work.cached_keys / work.users
    read = peak * (1 - work.live_share) * work.candidates
    live = peak * work.live_share
    events = work.events_per_day / DAY
    logged = work.requests_per_day * costs.log_days / _GIB
    vectors = costs.vector_bytes * _BITS / 1e9
    # Vectors that are kept are computed a user at a time: one history for all of the user's candidates.
    tokens_a_key = (work.history + per_user + 2) / per_user if per_user else 0.0
    return [
        Need(
            part="foundation training",
            cores=mean * trained * costs.fm_train_us_per_token * scale * _CPU_SECONDS,
            network_gbit=mean * (costs.request_bytes + trained * costs.exchange_bytes_per_token) * _BITS / 1e9,
        ),
        Need(
            part="publishing",
            cores=republished
            * (tokens_a_key * costs.fm_score_us_per_token * scale + costs.store_client_us_per_key * costs.replicas)
            * _CPU_SECONDS,
            network_gbit=republished * vectors,
        ),
        Need(  # what experts learn from: every request once, whether its vectors were served from the store or not
            part="teacher log",
            cores=mean * trained * costs.fm_score_us_per_token * scale * _CPU_SECONDS,
            network_gbit=mean * (costs.request_bytes + work.logged * costs.log_bytes_per_candidate) * _BITS / 1e9,
        ),
        Need(
            part="expert training",
            cores=mean * work.logged * work.variants * costs.expert_train_us_per_candidate * _CPU_SECONDS,
            network_gbit=mean * (costs.request_bytes + work.logged * costs.log_bytes_per_candidate) * _BITS / 1e9,
        ),
        Need(
            part="live scoring",
            cores=live * scored * costs.fm_score_us_per_token * scale * _CPU_SECONDS,
            network_gbit=live * work.candidates * vectors,
        ),
        Need(
            part="online store",
            cores=(read * costs.store_read_us_per_key + republished * costs.store_put_us_per_key * costs.replicas)
            * _CPU_SECONDS,
            memory_gib=(work.cached_keys + work.users) * costs.store_bytes_per_key * costs.replicas / _GIB,
            network_gbit=(read + republished * costs.replicas) * vectors,
        ),
        Need(
            part="feature state",
            cores=events * costs.state_us_per_event * costs.replicas * _CPU_SECONDS,
            memory_gib=work.users * (work.history * costs.event_bytes + costs.user_bytes) * costs.replicas / _GIB,
            network_gbit=(peak * work.history + events * costs.replicas) * costs.event_bytes * _BITS / 1e9,
        ),
        Need(
            part="answering",
            cores=(
                peak * (costs.request_us + work.candidates * work.served * costs.expert_score_us_per_candidate)
                + read * costs.store_client_us_per_key
            )
            * _CPU_SECONDS,
            network_gbit=(read + live * work.candidates) * vectors,
        ),
        Need(
            part="logs",
            network_gbit=mean * (costs.request_bytes + work.logged * costs.log_bytes_per_candidate) * _BITS / 1e9,
            disk_gib=logged * (costs.request_bytes + work.logged * costs.log_bytes_per_candidate) * costs.replicas,
        ),
    ]


def _pool(need: Need, host: Host) -> Pool:
    asked = {name: getattr(need, name) / (getattr(host, name) * host.utilisation) for name in RESOURCES}
    saturates = max(asked, key=lambda name: asked[name])
    hosts = max(1, math.ceil(asked[saturates]))
    values = asdict(need)
    load = {name: values[name] / (getattr(host, name) * hosts) for name in RESOURCES}
    return Pool(need=need, hosts=hosts, saturates=saturates, load=load)
