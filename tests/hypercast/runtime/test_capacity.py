"""The arithmetic of a capacity plan."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hypercast.cli.main import app, shipped_config
from hypercast.runtime import capacity
from hypercast.runtime.capacity import DAY, RESOURCES, Costs, Host, Plan, Workload
from streaming import config as configuration
from streaming.errors import ConfigError

ONE = Costs(**dict.fromkeys(Costs.model_fields, 1.0))
"""Every cost is one unit, and the logs are kept for a day, once."""
SHIPPED = shipped_config("scale/billion_users.yaml")


def need(part: str, work: Workload, costs: Costs = ONE) -> capacity.Need:
    (found,) = (each for each in capacity.needs(work, costs) if each.part == part)
    return found


def test_parts_by_hand() -> None:
    work = Workload(
        users=10, requests_per_day=DAY, peak=3, candidates=4, logged=2, history=5, events_per_day=2 * DAY,
        variants=6, served=1, live_share=0.5, cached_keys=100, republished_share=0.0,
    )  # fmt: skip
    assert need("foundation training", work).cores == pytest.approx((5 + 2 + 2) * 1e-6)
    assert need("foundation training", work).network_gbit == pytest.approx((1 + 5 + 2 + 2) * 8e-9)
    assert need("teacher log", work).cores == pytest.approx((5 + 2 + 2) * 1e-6)
    assert need("teacher log", work).network_gbit == pytest.approx((1 + 2) * 8e-9)
    assert need("expert training", work).cores == pytest.approx(2 * 6 * 1e-6)
    assert need("live scoring", work).cores == pytest.approx(3 * 0.5 * (5 + 4 + 2) * 1e-6)
    assert need("online store", work).cores == pytest.approx(3 * 0.5 * 4 * 1e-6)
    assert need("online store", work).memory_gib == pytest.approx(110 / 2**30)
    assert need("feature state", work).memory_gib == pytest.approx(10 * (5 + 1) / 2**30)
    assert need("answering", work).cores == pytest.approx(3 * (1 + 4 + 0.5 * 4) * 1e-6)
    assert need("answering", work).network_gbit == pytest.approx(3 * 4 * 8e-9)
    assert need("logs", work).disk_gib == pytest.approx(DAY * (1 + 2) / 2**30)
    assert need("publishing", work).cores == 0


def test_keys_of_one_user_are_published_by_one_pass_over_the_history() -> None:
    work = Workload(users=10, cached_keys=200, republished_share=1, history=30)
    # 10 users a day, each with 30 engagements, 20 candidates and 2 tokens of context, and 20 keys to put.
    assert need("publishing", work).cores == pytest.approx(10 * (52 + 20) / DAY * 1e-6)


@given(
    cores=st.floats(0, 1e7), memory=st.floats(0, 1e7), network=st.floats(0, 1e6), disk=st.floats(0, 1e8),
    utilisation=st.floats(0.1, 1),
)  # fmt: skip
def test_a_pool_is_the_smallest_that_stays_within_its_share(
    cores: float, memory: float, network: float, disk: float, utilisation: float
) -> None:
    host = Host(utilisation=utilisation)
    asked = capacity.Need(part="any", cores=cores, memory_gib=memory, network_gbit=network, disk_gib=disk)
    pool = capacity._pool(asked, host)
    assert max(pool.load.values()) <= utilisation * (1 + 1e-9)
    assert pool.load[pool.saturates] == max(pool.load.values())
    if pool.hosts > 1:
        fewer = getattr(asked, pool.saturates) / getattr(host, pool.saturates) / (pool.hosts - 1)
        assert fewer > utilisation * (1 - 1e-9)
    assert isinstance(pool.hosts, int) and math.isfinite(pool.hosts)


@given(factor=st.floats(1.5, 100))
def test_twice_the_requests_never_need_less(factor: float) -> None:
    plan = configuration.load(SHIPPED, Plan)
    more = plan.workload.model_copy(update={"requests_per_day": plan.workload.requests_per_day * factor})
    for before, after in zip(capacity.needs(plan.workload, plan.costs), capacity.needs(more, plan.costs), strict=True):
        assert all(getattr(after, name) >= getattr(before, name) for name in RESOURCES)


def test_the_command_prints_what_the_function_says() -> None:
    result = CliRunner().invoke(app, ["scale", str(SHIPPED), "--json"])
    rows = json.loads(result.stdout)
    found = capacity.pools(configuration.load(SHIPPED, Plan))
    assert [(row["part"], row["hosts"], row["saturates"]) for row in rows[:-1]] == [
        (pool.need.part, pool.hosts, pool.saturates) for pool in found
    ]
    assert rows[-1]["hosts"] == sum(pool.hosts for pool in found)


def test_a_cost_that_is_left_out_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    lines = [line for line in SHIPPED.read_text().splitlines() if "request_us" not in line]
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"key 'costs.request_us': Field required"):
        configuration.load(file, Plan)
