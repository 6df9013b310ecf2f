"""What a platform publishes follows from what its experts read, and how late they are to read it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import ExpertJob, FoundationJob
from streaming import config as configuration
from streaming.errors import ConfigError


@pytest.fixture
def config(platform_file: Callable[..., Path], tmp_path: Path) -> Callable[..., PlatformConfig]:
    def load(expert: str, *, keep: int = 4) -> PlatformConfig:
        file = platform_file(tmp_path / "run")
        text = file.read_text(encoding="utf-8").replace("publisher: {keep: 2}", f"publisher: {{keep: {keep}}}")
        file.write_text(text.replace("\nexpert:", f"\nexpert:\n  {expert}"), encoding="utf-8")
        return configuration.load(file, PlatformConfig)

    return load


@pytest.mark.parametrize(
    ("arms", "published"),
    [
        ("[control, tae]", ["penultimate"]),
        ("[control, kd, tae_history]", ["penultimate"]),
        ("[control, user_embedding]", ["penultimate", "user"]),
        ("[user_embedding, tae_sequence]", ["penultimate", "sequence", "user"]),
    ],
)
def test_what_the_arms_read_is_published(
    arms: str, published: list[str], config: Callable[..., PlatformConfig]
) -> None:
    assert config(f"arms: {arms}").publisher().representations == published


def test_an_unknown_arm_is_named_with_its_path(config: Callable[..., PlatformConfig]) -> None:
    with pytest.raises(ConfigError, match=r"key 'expert.arms.1': Input should be 'control'.*got 'finesse'"):
        config("arms: [control, finesse]")


def test_a_delay_needs_its_snapshots(config: Callable[..., PlatformConfig]) -> None:
    with pytest.raises(ConfigError, match=r"teacher_delay_windows: 3 needs snapshots that .*keep: 4.*Give keep: 5"):
        config("teacher_delay_windows: 3")


def test_late_labels_need_their_snapshots(config: Callable[..., PlatformConfig]) -> None:
    with pytest.raises(ConfigError, match=r"windows: 1 with label_delay_windows: 2 needs.*keep: 4.*Give keep: 5"):
        config("teacher_delay_windows: 1\n  label_delay_windows: 2\n  arms: [control, kd]")


def test_late_labels_that_nobody_learns_from_need_nothing(config: Callable[..., PlatformConfig]) -> None:
    assert config("label_delay_windows: 9").expert.delays == (0,)


def test_late_labels_are_published_beside_the_vectors(config: Callable[..., PlatformConfig], tmp_path: Path) -> None:
    made = config("label_delay_windows: 1\n  arms: [control, kd]")
    foundation = FoundationJob(made, tmp_path / "run")
    experts = ExpertJob(made, tmp_path / "run", ["surface_0"])
    for window in (1, 2, 3):
        foundation.publish(window)
        experts.run_window(window, None)
        foundation.run_window(window)
    found = [(segment.window, segment.snapshot) for segment in foundation.publisher.log.segments()]
    assert sorted(found) == [(1, "FM@0001"), (2, "FM@0001"), (2, "FM@0002"), (3, "FM@0002"), (3, "FM@0003")]


def test_a_delayed_teacher_publishes_beside_the_newest(config: Callable[..., PlatformConfig], tmp_path: Path) -> None:
    made = config("teacher_delay_windows: 2")
    foundation = FoundationJob(made, tmp_path / "run")
    experts = ExpertJob(made, tmp_path / "run", ["surface_0"])
    for window in (1, 2, 3, 4):
        foundation.publish(window)
        experts.run_window(window, None)
        foundation.run_window(window)
    found = [(segment.window, segment.snapshot) for segment in foundation.publisher.log.segments()]
    assert sorted(found) == [
        (1, "FM@0001"),
        (2, "FM@0001"),
        (2, "FM@0002"),
        (3, "FM@0001"),
        (3, "FM@0003"),
        (4, "FM@0002"),
        (4, "FM@0004"),
    ]
