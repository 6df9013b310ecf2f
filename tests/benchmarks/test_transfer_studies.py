"""Studies: which runs share a teacher, and the figures of runs too small to mean anything."""

from pathlib import Path

import pytest

from benchmarks import study_runs, transfer_studies
from benchmarks.study_runs import Variant
from hypercast.runtime.config import PlatformConfig
from streaming.importers.synthetic import Synthetic
from transfer.gain import Span


def tiny(dataset: Path, work: Path) -> PlatformConfig:
    vocabulary = {"default": 64}
    model = {"width": 16, "representation": 8, "tower": 16, "history": 16, "stack": {"layers": 1}}
    expert = {"width": 8, "history": 8, "backbone": {"kind": "mlp", "hidden": [8]}}
    return PlatformConfig.model_validate(
        {
            "name": "tiny",
            "dataset": {"path": dataset},
            "run": work / "unused",
            "seeds": [0, 1],
            "foundation": {"batch_size": 8, "model": {**model, "vocabulary": vocabulary}},
            "expert": {
                "arms": ["control", "tae_aux_head_adapter"],
                "batch_size": 8,
                "model": expert,
                "fusion": {"width": 8},
                "vocabulary": vocabulary,
            },
        }
    )


def test_keys_are_checked_as_in_a_file(tmp_path: Path) -> None:
    base = tiny(tmp_path, tmp_path)
    assert study_runs.changed(base, {"foundation.model.width": 24}).foundation.model.width == 24
    with pytest.raises(ValueError, match="multiple of 4"):
        study_runs.changed(base, {"foundation.model.width": 23})


def test_every_study_is_a_platform_file(tmp_path: Path) -> None:
    base = study_runs.changed(tiny(tmp_path, tmp_path), {"foundation.publisher.keep": 54})
    studies = transfer_studies.STUDIES.values()
    assert all(study_runs.changed(base, study.changes) != base or study.coverage < 1 for study in studies)


@pytest.mark.slow
def test_variants_run_once_and_share_what_they_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Synthetic.Config(users=16, items=24, windows=4, candidates=6, surfaces=2).build(tmp_path / "data")
    sizes = {f"size_{width}": Variant(changes={"foundation.model.width": width}) for width in (8, 32)}
    monkeypatch.setattr(transfer_studies, "SIZE", sizes)
    chosen = ("staleness_1", "coverage_25", "codec_int4", "modes", "dcn")
    variants = {name: transfer_studies.STUDIES[name] for name in chosen}
    base, work = tiny(dataset.path, tmp_path), tmp_path / "work"

    def figures() -> dict[str, float | str]:
        return transfer_studies.studies(base, variants | sizes, work=work, span=Span("late", 3, 4))

    values = figures()
    assert values["size_8.fm_flops_per_candidate"] < values["base.fm_flops_per_candidate"]
    assert values["base.fm_ne"] == values["dcn.fm_ne"] == values["codec_int4.fm_ne"] != values["size_32.fm_ne"]
    experts = [values[f"{name}.ne"] for name in ("base", "staleness_1", "coverage_25", "codec_int4", "dcn")]
    assert len(set(experts)) == len(experts)
    assert {"tr_size_8_base_lo", "power_exponent", "staleness_1.gain_pct", "noise_floor_pct"} <= values.keys()
    checkpoints = sorted(work.rglob("state.json"))
    assert values["modes.finetune.ne"] != values["modes.tae_sequence.ne"] != values["modes.tae_kd.ne"]
    assert not (work / "modes" / "tae_log").exists()  # only what was predicted stays
    before = [file.stat().st_mtime_ns for file in checkpoints]
    assert figures() == values
    assert [file.stat().st_mtime_ns for file in sorted(work.rglob("state.json"))] == before
