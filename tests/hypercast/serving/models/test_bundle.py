"""One set that fits, loaded whole or not at all."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from hypercast import pins
from hypercast.errors import RegistryError
from hypercast.objects import channels
from hypercast.pins import Pin
from hypercast.registry import Registry
from hypercast.runtime import expert_file, promotion
from hypercast.runtime.trainings import Training
from hypercast.serving.models.bundle import BundleLoader
from hypercast.serving.models.expert import ExpertScorer
from hypercast.serving.models.foundation import FoundationScorer
from hypercast.tensors import load, save
from streaming import config as configuration
from streaming import files
from streaming.dataset import Dataset
from streaming.workspace import Workspace
from tests.hypercast.serving.conftest import TRAINED, Played


@pytest.fixture(scope="module")
def workspace(played: Played) -> Workspace:
    return played.workspace()


@pytest.fixture
def copy(played: Played, tmp_path: Path) -> Played:
    """The run, to be changed."""
    shutil.copytree(played.run, tmp_path / "run")
    return Played(run=tmp_path / "run", dataset=played.dataset)


def test_the_newest_of_everything_serves(played: Played, workspace: Workspace) -> None:
    loader = BundleLoader(config=played.config, workspace=workspace)
    bundle = loader.load()
    assert bundle.version == loader.newest()
    assert bundle.snapshot is not None
    assert bundle.snapshot.name == "FM@0005"
    assert bundle.watermark == played.next_window.start
    for surface in workspace.inputs.surfaces:
        expert = bundle.experts[surface]
        assert (expert.arm, expert.representation, expert.reads_logits) == ("treated", "penultimate", True)
        assert expert.widths == {"penultimate": 8}
        assert (bundle.fallback[surface].arm, bundle.fallback[surface].widths) == ("control", {})
        assert bundle.foundation_of(surface) is bundle.foundation
        assert bundle.versions["experts"][surface] == {
            "arm": "treated",
            "window": TRAINED,
            "training": None,
            "pin": "FM",
        }
    vector_CR = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    assert bundle.foundation is not None
    assert bundle.foundation.kept is not None and bundle.foundation.kept.most == 64 << 20 and bundle.kept_bytes == 0
    weight, bias = (value.numpy() for value in bundle.foundation.model.main_heads.state_dict().values())
    np.testing.assert_allclose(bundle.logits(vector_CR), vector_CR @ weight.T + bias, rtol=1e-5, atol=1e-6)


def test_what_did_not_change_is_not_loaded_again_and_what_did_has_another_version(
    copy: Played, workspace: Workspace
) -> None:
    loader = BundleLoader(config=copy.config, workspace=workspace)
    first = loader.load()
    again = loader.load()
    assert again.version == first.version
    assert again.foundation is first.foundation
    assert again.experts["surface_0"] is first.experts["surface_0"]
    exported = copy.run / "experts" / "surface_0" / f"window={TRAINED:05d}"
    shutil.copytree(exported, exported.with_name(f"window={TRAINED + 1:05d}"))
    assert loader.newest() != first.version
    third = loader.load()
    assert third.versions["experts"]["surface_0"]["window"] == TRAINED + 1
    assert third.experts["surface_0"] is not first.experts["surface_0"]
    assert third.experts["surface_1"] is first.experts["surface_1"]
    assert third.foundation is first.foundation


def test_a_bundle_has_learned_up_to_when_its_newest_model_has(copy: Played, workspace: Workspace) -> None:
    loader = BundleLoader(config=copy.config, workspace=workspace)
    Registry(copy.run / "registry").rollback_channel("FM", "latest")
    bundle = loader.load()
    assert bundle.snapshot is not None
    assert bundle.snapshot.watermark < copy.next_window.start == bundle.watermark
    exported = copy.run / "experts" / "surface_0" / f"window={TRAINED:05d}"
    shutil.copytree(exported, exported.with_name(f"window={TRAINED + 1:05d}"))
    assert loader.load().watermark == copy.next_window.end


def test_an_expert_that_is_pinned_reads_its_own_snapshot(copy: Played, workspace: Workspace) -> None:
    registry = Registry(copy.run / "registry")
    loader = BundleLoader(config=copy.config, workspace=workspace)
    before = loader.newest()
    registry.pin("surface_1", lineage="FM", version=4)
    assert loader.newest() != before
    bundle = loader.load()
    pinned = bundle.foundation_of("surface_1")
    assert pinned is not None
    assert pinned.snapshot.name == "FM@0004"
    assert bundle.foundation_of("surface_0") is bundle.foundation


def test_what_was_promoted_serves_its_surface(copy: Played, workspace: Workspace) -> None:
    loader = BundleLoader(config=copy.config, workspace=workspace, arm="treated")
    before = loader.load()
    made = expert_file.make(
        copy.run, "better", platform=copy.config, inputs=workspace.inputs, surface="surface_1", mode="tae"
    )
    expert_file.create(copy.run, "better", made, backfill=4)
    version = copy.run / "experts.d" / "better" / "0001"
    training = Training(expert=expert_file.read(copy.run, "better"), first=1, last=3, pin="FM")
    files.write_text(version / "training.yaml", configuration.dump(training))
    shutil.copytree(copy.run / "experts" / "surface_1" / f"window={TRAINED:05d}", version / "model")
    alias = channels.read(copy.run / "experts", "surface_1", promotion.SERVING)
    channels.write(copy.run / "experts", alias.to("better@0001"))
    assert loader.newest() != before.version
    bundle = loader.load()
    assert bundle.experts["surface_1"].arm == "tae"
    assert bundle.fallback["surface_1"].arm == "control"
    assert bundle.versions["experts"]["surface_1"] == {
        "arm": "tae",
        "window": 3,
        "training": "better@0001",
        "pin": "FM",
    }
    assert bundle.experts["surface_0"] is before.experts["surface_0"]


@pytest.mark.parametrize("arm", ["control", "tae"])
def test_an_arm_can_be_chosen(played: Played, workspace: Workspace, arm: str) -> None:
    bundle = BundleLoader(config=played.config, workspace=workspace, arm=arm).load()
    assert {expert.arm for expert in bundle.experts.values()} == {arm}
    assert {expert.arm for expert in bundle.fallback.values()} == {"control"}


def test_an_arm_that_was_not_exported_is_refused(played: Played, workspace: Workspace) -> None:
    with pytest.raises(RegistryError, match="arm kd was not exported; there are control"):
        BundleLoader(config=played.config, workspace=workspace, arm="kd").load()


def test_a_run_without_experts_is_refused(played: Played, tmp_path: Path, workspace: Workspace) -> None:
    empty = Played(run=tmp_path, dataset=played.dataset)
    with pytest.raises(RegistryError, match="no expert of any surface"):
        BundleLoader(config=empty.config, workspace=workspace).load()


def test_vectors_of_another_width_are_refused(played: Played, workspace: Workspace) -> None:
    folder = played.run / "experts" / "surface_0" / f"window={TRAINED:05d}"
    with pytest.raises(RegistryError, match="made for other vectors"):
        ExpertScorer(folder=folder / "tae", surface="surface_0", workspace=workspace, dims={"penultimate": 16}, as_of=0)
    with pytest.raises(RegistryError, match="'sequence' vectors, and the snapshot publishes"):
        ExpertScorer(
            folder=folder / "tae_sequence", surface="surface_0", workspace=workspace, dims={"penultimate": 8}, as_of=0
        )
    control = ExpertScorer(folder=folder / "control", surface="surface_0", workspace=workspace, dims={}, as_of=0)
    assert control.representation is None


@pytest.mark.parametrize(
    ("pin", "says"),
    [
        (Pin(expert="surface_0", lineage="FM", dtype="int8"), "dtype is float16, not int8"),
        (Pin(expert="surface_0", lineage="FM", dims={"penultimate": 16}), "width is 8, not 16"),
        (Pin(expert="surface_0", lineage="FM", dims={"sequence": 16}), r"pinned to representations \['sequence'\]"),
        (Pin(expert="surface_0", lineage="FM", version=77), "no snapshot FM@0077"),
        (Pin(expert="surface_0", lineage="OTHER"), "the snapshot publishes none"),
    ],
)
def test_a_pin_refuses_what_does_not_fit(copy: Played, workspace: Workspace, pin: Pin, says: str) -> None:
    pins.write(copy.run / "registry", "surface_0", [pin])
    with pytest.raises(RegistryError, match=says):
        BundleLoader(config=copy.config, workspace=workspace).load()


def test_an_expert_may_follow_another_lineage(copy: Played, workspace: Workspace) -> None:
    registry = Registry(copy.run / "registry")
    said = registry.current("FM")
    facts = {name: said.manifest[name] for name in ("schema_hash", "dims", "dtype", "tasks", "metrics", "metadata")}
    registry.publish(lineage="OTHER", tensors=said.load(), watermark=said.watermark, parent=None, **facts)
    registry.pin("surface_0", lineage="OTHER")
    loader = BundleLoader(config=copy.config, workspace=workspace)
    bundle = loader.load()
    other = bundle.foundation_of("surface_0")
    assert other is not None
    assert (other.snapshot.name, bundle.foundation.snapshot.name) == ("OTHER@0001", "FM@0005")
    changed = {name: value + 1 if name == "main_heads.bias" else value for name, value in said.load().items()}
    registry.publish(lineage="OTHER", tensors=changed, watermark=said.watermark + 1, parent="OTHER@0001", **facts)
    assert loader.newest() != bundle.version


def test_a_damaged_export_is_refused_and_what_was_loaded_stays(copy: Played, workspace: Workspace) -> None:
    loader = BundleLoader(config=copy.config, workspace=workspace)
    bundle = loader.load()
    exported = copy.run / "experts" / "surface_0" / f"window={TRAINED:05d}"
    newer = exported.with_name(f"window={TRAINED + 1:05d}")
    shutil.copytree(exported, newer)
    file = newer / "treated" / "expert.safetensors"
    tensors = load(file)
    tensors.pop(next(name for name in tensors if name.startswith("model.backbone")))
    save(file, tensors)
    with pytest.raises(RegistryError, match="Missing key"):
        loader.load()
    save(file, {name: tensor for name, tensor in tensors.items() if "users.ids" not in name})
    with pytest.raises(RegistryError, match="Missing key"):
        loader.load()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RegistryError, match=r"expert.safetensors: damaged"):
        loader.load()
    file.unlink()
    with pytest.raises(RegistryError, match="missing: no whole expert"):
        loader.load()
    shutil.rmtree(newer)
    assert loader.load().experts["surface_0"] is bundle.experts["surface_0"]


def test_a_snapshot_for_other_inputs_is_refused(played: Played, workspace: Workspace) -> None:
    changed = workspace.dataset.config.model_copy(update={"context": ["store"]})
    other = Workspace(Dataset(path=workspace.dataset.path, config=changed))
    with pytest.raises(RegistryError, match="other inputs"):
        FoundationScorer(snapshot=played.snapshot, workspace=other, ages=played.config.log)
