from pathlib import Path

import pytest

from hypercast.errors import CheckpointError
from hypercast.training import checkpoint
from transfer import health


def test_series_by_metric_and_window(tmp_path: Path) -> None:
    noted = {"1": {"coverage/fresh": 1.0, "teacher/age_hours": 3.0}, "2": {"coverage/fresh": 0.5, "coverage/miss": 0.5}}
    place = tmp_path / "checkpoints" / "experts" / "home"
    checkpoint.save(place, tensors={}, state={"metrics": noted}, step=2)
    found = health.read(tmp_path, surfaces=["home", "mailer"])
    assert found.coverage == {"home": {"fresh": {1: 1.0, 2: 0.5}, "miss": {2: 0.5}}}
    assert found.age == {"home": {1: 3.0}}
    assert found.drift == {}


def test_what_surfaces_that_share_an_expert_noted_is_told_apart(tmp_path: Path) -> None:
    of_one = {"coverage/fresh": 1.0, "teacher/age_hours": 3.0}
    noted = health.by_surface({"home": of_one, "mailer": {"coverage/fresh": 0.5}})
    assert noted == {"coverage/fresh@home": 1.0, "teacher/age_hours@home": 3.0, "coverage/fresh@mailer": 0.5}
    assert health.by_surface({"home": of_one}) == of_one
    assert health.of_surface(noted | {"tables/a@b": 0.1, "loss": 2.0}, "mailer") == {
        "coverage/fresh": 0.5,
        "tables/a@b": 0.1,
        "loss": 2.0,
    }
    place = tmp_path / "checkpoints" / "experts" / "both"
    checkpoint.save(place, tensors={}, state={"metrics": {"1": noted}}, step=1)
    found = health.read(tmp_path, surfaces=["mailer", "home"])
    assert found.coverage == {"mailer": {"fresh": {1: 0.5}}, "home": {"fresh": {1: 1.0}}}
    assert found.age == {"home": {1: 3.0}}


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    place = tmp_path / "checkpoints" / "foundation"
    path = checkpoint.save(place, tensors={}, state={"metrics": {}}, step=1)
    assert health.read(tmp_path, surfaces=[]).drift == {}
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"step-00000001: what was noted of the windows cannot be read"):
        health.read(tmp_path, surfaces=[])
