from pathlib import Path

import numpy as np
import pytest

from benchmarks import study_teacher
from benchmarks.study_runs import changed
from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import FoundationJob
from hypercast.store.tae_log import TaeLog
from streaming.importers.synthetic import Synthetic


@pytest.fixture
def base(tmp_path: Path) -> PlatformConfig:
    dataset = Synthetic.Config(users=12, items=24, windows=4, candidates=6, surfaces=2).build(tmp_path / "data")
    model = {"width": 16, "representation": 8, "tower": 16, "history": 16, "stack": {"layers": 1}}
    foundation = {"batch_size": 8, "model": {**model, "vocabulary": {"default": 64}}, "publisher": {"keep": 99}}
    return PlatformConfig.model_validate(
        {"name": "tiny", "dataset": {"path": dataset.path}, "run": tmp_path / "run", "foundation": foundation}
    )


def trained(config: PlatformConfig, run: Path) -> TaeLog:
    job = FoundationJob(config, run)
    for window in job.workspace.dataset.windows:
        job.publish(window.index)
        job.run_window(window.index)
    return config.log.build(run / "tae_log")


def test_what_is_published_again_is_what_the_training_would_have_published(
    base: PlatformConfig, tmp_path: Path
) -> None:
    late = changed(base, {"expert.teacher_delay_windows": 2})
    expected = trained(late, tmp_path / "late")
    trained(base, tmp_path / "base")
    study_teacher.publish_again(tmp_path / "base", late, run=tmp_path / "again")
    again = late.log.build(tmp_path / "again" / "tae_log").segments()
    assert [(one.snapshot, one.window) for one in again] == [("FM@0001", w) for w in (1, 2, 3)] + [("FM@0002", 4)]
    for segment in again:
        assert segment.table.equals(expected.segment(segment.snapshot, segment.window).table)


def test_a_thinned_log_has_a_share_of_the_rows_as_they_were(base: PlatformConfig, tmp_path: Path) -> None:
    whole, part = trained(base, tmp_path / "base"), base.log.build(tmp_path / "part")
    study_teacher.thin(whole, part, Registry(tmp_path / "base" / "registry"), share=0.25, seed=0)
    before, after = ([each.table for each in log.segments()] for log in (whole, part))
    rows = [sum(len(table) for table in tables) for tables in (before, after)]
    assert rows[1] / rows[0] == pytest.approx(0.25, abs=0.08)
    for many, few in zip(before, after, strict=True):
        known = set(zip(many["request_id"].to_pylist(), many["candidate_id"].to_pylist(), strict=True))
        assert known >= set(zip(few["request_id"].to_pylist(), few["candidate_id"].to_pylist(), strict=True))
        assert np.isin(few["age"].to_numpy(), many["age"].to_numpy()).all()
