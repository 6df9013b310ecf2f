"""Speculation, measured: figures of a platform too small to mean anything, but each in its range and again the same."""

from pathlib import Path

import pytest

from benchmarks import solaris
from benchmarks.options import Options
from benchmarks.solaris_rounds import SHARES, variant
from hypercast.runtime.config import PlatformConfig
from hypercast.serving.speculation.misses import MISSES
from hypercast.serving.speculation.speculator import Speculator
from hypercast.store.tae_log import TaeLog
from streaming.errors import ConfigError
from streaming.importers.synthetic import Synthetic
from transfer.gain import Span

SPECULATION = Speculator.Config.model_validate(
    {"predictor": {"source": {"popular": 20}, "ranker": {"spans": 2, "negatives": 0.5}}}
)


def tiny(dataset: Path, work: Path) -> PlatformConfig:
    vocabulary = {"default": 64}
    model = {"width": 16, "representation": 8, "tower": 16, "history": 16, "stack": {"layers": 1}}
    expert = {"width": 8, "history": 8, "backbone": {"kind": "mlp", "hidden": [8]}}
    return PlatformConfig.model_validate(
        {
            "name": "tiny",
            "dataset": {"path": dataset},
            "run": work / "unused",
            "foundation": {"batch_size": 8, "model": {**model, "vocabulary": vocabulary}},
            "expert": {"batch_size": 8, "model": expert, "fusion": {"width": 8}, "vocabulary": vocabulary},
        }
    )


def test_what_it_needs_is_said() -> None:
    with pytest.raises(ConfigError, match="--data DATASET"):
        solaris.measure(Options())


@pytest.mark.slow
def test_figures(tmp_path: Path) -> None:
    dataset = Synthetic.Config(users=16, items=24, windows=5, candidates=6, surfaces=2).build(tmp_path / "data")
    work = tmp_path / "work"

    def measured() -> solaris.Values:
        return solaris.figures(
            tiny(dataset.path, tmp_path),
            SPECULATION,
            work=work,
            surfaces=["surface_0"],
            choose=Span("choose", 3, 3),
            report=Span("report", 4, 5),
        )

    values = measured()
    coverage = [values[f"coverage_{share}"] for share in SHARES]
    assert 0 < coverage[0] <= coverage[1] <= coverage[2] <= coverage[3] < 1
    assert (
        values["present_user_100"] > values["coverage_100"] and values["present_nearest_100"] >= values["coverage_100"]
    )
    assert 0 < values["online_near"] <= values["online_mean"] <= 1
    miss = values["miss_policy"]
    assert miss in MISSES
    for share in SHARES:
        assert values[f"gain_{share}"] == values[f"gain_{miss}_{share}"]
        assert values[f"gain_{share}_lo"] <= values[f"gain_{share}"] <= values[f"gain_{share}_hi"]
        assert f"surface_0.gain_{share}" in values and f"live_over_{share}_hi" in values
    assert len({values[f"gain_{share}"] for share in SHARES} | {values["gain_live"]}) == len(SHARES) + 1
    log = TaeLog(work / variant(25, "user") / "tae_log")
    assert [segment.window for segment in log.segments()] == [1, 2, 3, 4, 5] and log.verify() == []
    assert measured() == values
