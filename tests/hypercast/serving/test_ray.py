"""The same application behind Ray Serve."""

from pathlib import Path

import numpy as np
import pytest

from hypercast.serving.deploy import on_ray
from streaming.dataset import Dataset
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
