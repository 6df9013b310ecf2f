"""The same application behind Ray Serve."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hypercast.errors import StoreError
from hypercast.runtime.ray_engine import RayEngine
from hypercast.serving.config import Limits, ServingConfig
from hypercast.serving.deploy import deployment_options, on_ray
from streaming.dataset import Dataset
from streaming.errors import ConfigError
from tests.hypercast.serving.conftest import Played
from tests.hypercast.serving.wire import ask
from tests.hypercast.serving.world import FIRST_USER, configured, scores, serving, until
from tests.hypercast.store.valkey_server import free_port


@pytest.mark.slow
def test_replicas_answer_as_one_process_does(played: Played, tmp_path: Path) -> None:
    config = configured(played, tmp_path, port=free_port())
    asked = {"user_id": FIRST_USER + 5, "at": 20.0}
    assert config.serving is not None
    with serving(config.model_copy(update={"serving": config.serving.model_copy(update={"port": 0})})) as world:
        question, expected = world.question(**asked), scores(world.rank(**asked))
        now, action = world.now, Dataset.open(config.dataset.path).config.actions[0]
    ray_config = config.serving.model_copy(update={"engine": "ray", "replicas": 2})
    with on_ray(config, ray_config):
        port = ray_config.port
        for _ in range(8):
            status, told = ask(port, "POST", "/v1/rank", question)
            assert status == 200
            np.testing.assert_allclose(scores(told), expected, atol=1e-5)
        assert ask(port, "POST", "/v1/rank", {**question, "surface": "attic"})[0] == 422
        assert ask(port, "POST", "/v1/rank", {**question, "item_ids": [1] * 2000})[0] == 413
        event = {"user_id": FIRST_USER + 5, "item_id": 1000, "action": action, "time": now + 1}
        assert ask(port, "POST", "/v1/events", {"events": [event]})[0] == 200
        seen: list[bool] = []

        def every_replica_has_seen_it() -> bool:
            seen.append(not np.allclose(scores(ask(port, "POST", "/v1/rank", question)[1]), expected, atol=1e-5))
            return len(seen) > 12 and all(seen[-12:])

        until(every_replica_has_seen_it, seconds=60)


def test_what_waits_for_replicas_is_limited() -> None:
    options = deployment_options(ServingConfig(engine="ray", replicas=3, limits=Limits(waiting=7)))
    assert (options["max_ongoing_requests"], options["max_queued_requests"], options["num_replicas"]) == (7, 7, 3)


def test_the_cluster_that_the_platform_names_is_joined(played: Played) -> None:
    """None is started beside it."""
    config = played.config.model_copy(update={"ray": RayEngine.Config(address=f"127.0.0.1:{free_port()}")})
    with pytest.raises(ConfigError, match=r"ray\.address: cannot join"), on_ray(config, ServingConfig(engine="ray")):
        pass


@pytest.mark.parametrize("there", [[], ["hypercast-serving"]])
def test_in_a_cluster_nobody_elses_application_is_touched(
    played: Played, monkeypatch: pytest.MonkeyPatch, there: list[str]
) -> None:
    import ray
    from ray import serve

    called = list[tuple[str, Any]]()

    def noted(module: Any, name: str, result: Any = None) -> None:
        def note(*given: Any, **named: Any) -> Any:
            called.append((name, named.get("name", given)))
            return result

        monkeypatch.setattr(module, name, note)

    status = SimpleNamespace(applications=dict.fromkeys(["other", *there]))
    noted(ray, "is_initialized", result=True)
    noted(ray, "shutdown")
    for name, result in {"start": None, "status": status, "run": None, "delete": None, "shutdown": None}.items():
        noted(serve, name, result)
    allowed = pytest.raises(StoreError, match="already") if there else contextlib.nullcontext()
    with allowed, on_ray(played.config, ServingConfig(engine="ray")):
        assert ("run", "hypercast-serving") in called
    ended = [("delete", ("hypercast-serving",))]
    assert [call for call in called if call[0] in ("delete", "shutdown")] == ([] if there else ended)
