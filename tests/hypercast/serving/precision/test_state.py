"""A compact model comes back from disk with the same bits, or not at all."""

import json
from pathlib import Path

import pytest
import torch

from foundation.model import FoundationModel
from hypercast.errors import CheckpointError
from hypercast.serving.precision import state
from hypercast.serving.precision.compact import CompactModel, Precision, compact
from hypercast.serving.precision.kernels import BFloat16
from streaming import files
from streaming.workspace import Workspace
from tests.hypercast.serving.precision.world import CONFIG, World, never_float32


def made(world: World, **settings: object) -> CompactModel[FoundationModel]:
    config = Precision.model_validate({"layer_error": 10.0, "table_error": 10.0, "ne_cost_pct": 1e6, **settings})
    return compact(world.model, config, world.sample, timer=never_float32)


@pytest.mark.parametrize("kernels", [["bfloat16"], ["int8"], []])
@pytest.mark.parametrize("tables", [["int8"], ["int4"], []])
def test_a_round_trip_keeps_every_bit(
    world: World, fresh: FoundationModel, tmp_path: Path, kernels: list[str], tables: list[str]
) -> None:
    compacted = made(world, kernels=kernels, tables=tables)
    state.save(tmp_path / "compact", compacted)
    loaded = state.load(tmp_path / "compact", fresh)
    assert loaded.report == compacted.report
    assert loaded.layers.keys() == compacted.layers.keys()
    for call in world.later:
        for name in ("logit_CT", "surface_logit_CT", "penultimate_CR"):
            assert torch.equal(getattr(loaded(*call), name), getattr(compacted(*call), name))


def test_float32_tables_are_not_in_the_file(world: World, tmp_path: Path) -> None:
    state.save(tmp_path / "small", made(world, tables=["int4"]))
    state.save(tmp_path / "large", made(world, tables=[]))
    saved = world.model.table.weight.nbytes * (1 - 12 / 64)
    sizes = [(tmp_path / name / state.TENSORS).stat().st_size for name in ("small", "large")]
    assert sizes[1] - sizes[0] == pytest.approx(saved, rel=0.02)


@pytest.mark.parametrize("name", [state.REPORT, state.TENSORS, state.DIGESTS])
def test_damage_is_noticed(world: World, fresh: FoundationModel, tmp_path: Path, name: str) -> None:
    state.save(tmp_path / "compact", made(world))
    data = bytearray((tmp_path / "compact" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "compact" / name).write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="compact"):
        state.load(tmp_path / "compact", fresh)


@pytest.mark.parametrize("name", [state.REPORT, state.TENSORS, state.DIGESTS])
def test_a_missing_file_is_named(world: World, fresh: FoundationModel, tmp_path: Path, name: str) -> None:
    state.save(tmp_path / "compact", made(world))
    (tmp_path / "compact" / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        state.load(tmp_path / "compact", fresh)


@pytest.mark.parametrize("change", [{"width": 8}, {"tower": 12}, {"representation": 4}])
def test_another_model_is_refused(world: World, workspace: Workspace, tmp_path: Path, change: dict[str, int]) -> None:
    state.save(tmp_path / "compact", made(world))
    other = CONFIG.model_copy(update=change).build(inputs=workspace.inputs, seed=0).eval()
    with pytest.raises(CheckpointError, match="compact"):
        state.load(tmp_path / "compact", other)


def test_digests_name_no_file_outside_the_folder(world: World, fresh: FoundationModel, tmp_path: Path) -> None:
    state.save(tmp_path / "compact", made(world))
    (tmp_path / "secret").write_text("x")
    digests = {"../secret": files.sha256_of(tmp_path / "secret")}
    (tmp_path / "compact" / state.DIGESTS).write_text(json.dumps(digests))
    with pytest.raises(CheckpointError):
        state.load(tmp_path / "compact", fresh)


def test_a_machine_without_the_kernel_says_so(
    world: World, fresh: FoundationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.save(tmp_path / "compact", made(world, kernels=["bfloat16"]))
    monkeypatch.setattr(BFloat16, "unavailable", staticmethod(lambda: "this CPU is too old"))
    with pytest.raises(CheckpointError, match="too old"):
        state.load(tmp_path / "compact", fresh)


def test_a_folder_in_use_is_left_alone(world: World, tmp_path: Path) -> None:
    state.save(tmp_path / "compact", made(world))
    with pytest.raises(FileExistsError):
        state.save(tmp_path / "compact", made(world))
