"""A service whose misses are answered by the nearest user's vectors."""

from pathlib import Path

import numpy as np
import pytest

from hypercast.serving.config import ServingConfig
from tests.hypercast.serving.conftest import Played
from tests.hypercast.serving.world import FIRST_ITEM, FIRST_USER, configured, scores, serving

ASKER, OTHER = FIRST_USER + 3, FIRST_USER + 4
MINE, THEIRS = ([FIRST_ITEM + offset + number for number in range(6)] for offset in (0, 10))


@pytest.mark.parametrize("miss", ["nearest", "user"])
def test_a_missed_item_has_the_nearest_users_vector(played: Played, tmp_path: Path, miss: str) -> None:
    config = configured(played, tmp_path, mode="live")
    assert config.online is not None
    config = config.model_copy(update={"online": config.online.model_copy(update={"miss": miss})})
    with serving(config) as world:
        world.rank(at=1, user_id=ASKER, item_ids=MINE)
        world.rank(at=1, user_id=OTHER, item_ids=THEIRS)
        assert world.value("candidates_total", rung="LIVE") == 12  # what is kept of them is written at the end
    assert config.serving is not None
    cached = ServingConfig.model_validate(config.serving.model_dump() | {"mode": "cached"})
    with serving(config.model_copy(update={"serving": cached})) as world:
        own = world.rank(at=2, user_id=OTHER, item_ids=THEIRS)
        assert set(own["embeddings"]["rung"]) == {"FRESH"}
        nowhere = FIRST_ITEM + 40
        told = world.rank(at=2, user_id=ASKER, item_ids=[*THEIRS[:5], nowhere])
        rung = {"nearest": "NEAREST", "user": "USER"}[miss]
        assert told["embeddings"]["rung"] == [*[rung] * 5, "USER"]
        assert set(told["embeddings"]["status"]) == {"MISS"}
        assert world.value("candidates_total", rung=rung) >= 5
        stranger = world.rank(at=2, user_id=FIRST_USER + 9, item_ids=THEIRS)
        assert set(stranger["embeddings"]["rung"]) == {"ZEROS"}
        assert len(np.unique(scores(told)[:5, 0])) > 1
