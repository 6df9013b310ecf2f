"""What cannot be had is refused, with an example of what can."""

import pydantic
import pytest

from foundation.sharded.config import Sharding


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"workers": 3, "shards": 4}, "Give shards: 6"),
        ({"deterministic": True}, "shards: null"),
        ({"deterministic": True, "shards": 4, "dense": "fsdp2"}, "fsdp2"),
        ({"deterministic": True, "shards": 4, "kinds": ["column_wise"]}, "column_wise"),
        ({"deterministic": True, "shards": 4, "vectors": "float16"}, "below float32"),
        ({"kinds": []}, "at least 1"),
        ({"kinds": ["grid_wise"]}, "'table_wise', .* or 'data_parallel'"),
        ({"kinds_of": {"items/id": []}}, "at least 1"),
        ({"deterministic": True, "shards": 4, "kinds_of": {"items/id": ["column_wise"]}}, "column_wise"),
        ({"deterministic": True, "shards": 4, "accelerator": "cuda"}, "accelerator: cuda"),
        ({"accelerator": "gpu"}, "'cpu' or 'cuda'"),
        ({"worker": 2}, "worker"),
    ],
)
def test_a_bad_setting_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=said):
        Sharding.model_validate(given)


def test_shards_follow_the_workers_unless_they_are_given() -> None:
    assert Sharding(workers=3).logical == 3
    assert Sharding(workers=2, shards=4, deterministic=True).logical == 4
