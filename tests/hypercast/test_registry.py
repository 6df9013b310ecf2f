"""Snapshots are immutable, whole or invisible, and experts move between them only when told to."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from hypercast.errors import RegistryError
from hypercast.registry import Registry, Snapshot
from hypercast.tensors import digest


def publish(registry: Registry, watermark: int, *, value: float | None = None, **changed: Any) -> Snapshot:
    arguments: dict[str, Any] = {
        "lineage": "FM",
        "tensors": {"weight": torch.full((2, 3), float(watermark if value is None else value))},
        "watermark": watermark,
        "schema_hash": "s",
        "dims": {"penultimate": 4},
        "dtype": "float16",
        "tasks": ["buy"],
        "metrics": {"ne": 0.9},
        "parent": None,
        "metadata": {"steps": 3},
    }
    return registry.publish(**arguments | changed)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def test_publish_then_read_back(registry: Registry) -> None:
    first = publish(registry, 10)
    second = publish(registry, 20, parent=first.name)
    assert [snapshot.name for snapshot in registry.list("FM")] == ["FM@0001", "FM@0002"]
    assert registry.current("FM") == second == registry.get("FM@0002")
    assert second.manifest["parent"] == "FM@0001"
    assert (second.watermark, second.dims, second.dtype, second.tasks) == (20, {"penultimate": 4}, "float16", ["buy"])
    assert torch.equal(second.load()["weight"], torch.full((2, 3), 20.0))
    assert registry.lineages() == ["FM"]


def test_tied_strided_and_odd_tensors_come_back_equal(registry: Registry) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base,
        "tied": base,
        "transposed": base.T,
        "row": base[1],
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 5),
        "flags": torch.tensor([True, False]),
        "half": base.to(torch.bfloat16),
    }
    loaded = publish(registry, 10, tensors=tensors).load()
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert torch.equal(loaded[name], tensor), name


def test_publishing_the_same_again_returns_what_exists(registry: Registry) -> None:
    first = publish(registry, 10)
    publish(registry, 20)
    assert publish(registry, 10) == first
    assert len(registry.list("FM")) == 2
    assert registry.current("FM").name == "FM@0002"


def test_the_same_weights_do_not_publish_other_vectors(registry: Registry) -> None:
    publish(registry, 10)
    for changed in ({"dtype": "int8"}, {"dims": {"penultimate": 8}}, {"tasks": ["click"]}, {"schema_hash": "t"}):
        ((name, value),) = changed.items()
        with pytest.raises(
            RegistryError, match=f"FM@0001 was published of the same weights with {name} .*, not"
        ) as told:
            publish(registry, 10, **changed)
        assert repr(value) in str(told.value)
    assert publish(registry, 10, metrics={"ne": 0.8}).name == "FM@0001"


def test_a_snapshot_is_never_overwritten(registry: Registry) -> None:
    publish(registry, 10)
    with pytest.raises(RegistryError, match="FM@0001 has the same watermark 10 but other weights"):
        publish(registry, 10, value=-1.0)


def test_watermarks_grow(registry: Registry) -> None:
    parent = publish(registry, 10)
    with pytest.raises(RegistryError, match=r"watermark 9 is before 10 of FM@0001"):
        publish(registry, 9)
    with pytest.raises(RegistryError, match="before that of its parent"):
        publish(registry, 9, lineage="Other", parent=parent.name)
    with pytest.raises(RegistryError, match="no snapshot FM@0009"):
        publish(registry, 20, parent="FM@0009")


def test_latest_never_looks_ahead(registry: Registry) -> None:
    publish(registry, 10)
    publish(registry, 20)
    assert registry.latest("FM", as_of=20).watermark == 20
    assert registry.latest("FM", as_of=19).watermark == 10
    with pytest.raises(RegistryError, match=r"watermark up to 9.*FM@0001 \(watermark 10\)"):
        registry.latest("FM", as_of=9)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "1a", ".hidden", "a" * 65, "a b", "é", "a\n"])
def test_names_that_would_make_odd_paths_are_refused(registry: Registry, name: str) -> None:
    for attempt in (
        lambda: publish(registry, 10, lineage=name),
        lambda: registry.pin(name, lineage="FM"),
        lambda: registry.pin("expert", lineage=name),
        lambda: registry.list(name),
        lambda: registry.get(f"{name}@0001"),
    ):
        with pytest.raises(RegistryError, match=r"Example"):
            attempt()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lineage": "pins"}, "reserved"),
        ({"dtype": "int3"}, "allowed are .*'float16'"),
        ({"tensors": {}}, "no weights"),
        ({"metadata": {"path": Path("x")}}, "must be JSON values"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(registry: Registry, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        publish(registry, 10, **changed)
    assert registry.list("FM") == []
    assert publish(registry, 10).name == "FM@0001"


@pytest.mark.parametrize("pattern", ["objects/*/*.safetensors", "FM/0001/manifest.json"])
def test_damage_is_found_and_the_file_named(registry: Registry, pattern: str) -> None:
    publish(registry, 10)
    (file,) = registry.root.glob(pattern)
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(RegistryError, match=str(file)):
        registry.get("FM@0001").load()
    file.unlink()
    with pytest.raises(RegistryError, match=str(file)):
        registry.get("FM@0001").load()


def test_a_folder_that_is_not_ready_is_invisible(registry: Registry) -> None:
    publish(registry, 10)
    (publish(registry, 20).path / "READY").unlink()
    assert [snapshot.version for snapshot in registry.list("FM")] == [1]
    with pytest.raises(RegistryError, match=r"no snapshot FM@0002\. There are: FM@0001"):
        registry.get("FM@0002")
    assert publish(registry, 30).name == "FM@0003"


def test_left_overs_are_cleaned_and_a_lagging_channel_mended(registry: Registry) -> None:
    publish(registry, 10)
    latest = (registry.root / "FM/channels/latest.json").read_bytes()
    publish(registry, 20)
    folder = registry.root / "FM"
    (folder / ".0003.partial").mkdir()
    (folder / ".0003.partial" / "manifest.json").write_bytes(b"half")
    (folder / "channels/.latest.json.partial").write_text("00")
    (folder / "channels/latest.json").write_bytes(latest)
    assert registry.current("FM").name == "FM@0001"
    publish(registry, 20)
    assert registry.current("FM").name == "FM@0002"
    assert not list(folder.rglob(".*"))


def test_prune_keeps_current_pinned_and_rollback_targets(registry: Registry) -> None:
    for watermark in range(1, 8):
        publish(registry, watermark)
    registry.pin("old", lineage="FM", version=1)
    registry.pin("back", lineage="FM", version=2)
    registry.pin("back", lineage="FM", version=4)
    registry.pin("follows", lineage="FM")
    registry.move("FM", "stable", expected=None, to="FM@0003")
    registry.move("FM", "stable", expected="FM@0003", to="FM@0005")
    publish(registry, 8)
    assert registry.prune("FM", keep=1) == ["FM@0006"]
    assert registry.rollback_channel("FM", "stable").version == 3
    assert registry.prune("FM", keep=1) == ["FM@0005"]
    registry.move("FM", "stable", expected="FM@0003", to=None)
    assert registry.prune("FM", keep=1) == ["FM@0003"]
    assert [snapshot.version for snapshot in registry.list("FM")] == [1, 2, 4, 7, 8]
    assert registry.rollback_channel("FM", "latest").version == 7
    with pytest.raises(RegistryError, match="no snapshot FM@0006"):
        registry.rollback_channel("FM", "latest")
    assert registry.rollback("back").version == 2
    assert publish(registry, 9).name == "FM@0009"
    with pytest.raises(RegistryError, match="at least 1"):
        registry.prune("FM", keep=0)


def test_an_expert_moves_only_when_told_to_and_can_go_back(registry: Registry) -> None:
    publish(registry, 10)
    with pytest.raises(RegistryError, match=r"not pinned.*hypercast expert pin home --lineage FM"):
        registry.pinned("home")
    registry.pin("home", lineage="FM", version=1)
    publish(registry, 20)
    assert registry.pinned("home").target == "FM@0001"
    registry.pin("home", lineage="FM", version=2)
    registry.pin("home", lineage="FM", version=2)
    assert Registry(registry.root).pinned("home").target == "FM@0002"
    assert registry.rollback("home").target == "FM@0001"
    assert registry.pinned("home").target == "FM@0001"
    with pytest.raises(RegistryError, match="nothing to go back to"):
        registry.rollback("home")
    with pytest.raises(RegistryError, match="no snapshot FM@0009"):
        registry.pin("home", lineage="FM", version=9)


def test_a_pin_refuses_other_vectors(registry: Registry) -> None:
    publish(registry, 10)
    publish(registry, 20)
    fixed = registry.pin("home", lineage="FM", version=1)
    follows = registry.pin("mail", lineage="FM")
    good: dict[str, Any] = {"snapshot": "FM@0001", "representation": "penultimate", "width": 4, "dtype": "float16"}
    fixed.check(**good)
    follows.check(**{**good, "snapshot": "FM@0002"})
    changes: list[tuple[dict[str, Any], str]] = [
        ({"snapshot": "Other@0001"}, "lineage 'Other'"),
        ({"snapshot": "FM@0002"}, "snapshot FM@0002"),
        ({"representation": "sequence"}, "not 'sequence'"),
        ({"width": 8}, "width is 8, not 4"),
        ({"dtype": "float32"}, "dtype is float32, not float16"),
    ]
    for changed, message in changes:
        with pytest.raises(RegistryError, match=rf"'home' is pinned to FM@0001 and refuses.*{message}"):
            fixed.check(**{**good, **changed})


def test_a_pin_may_come_before_the_first_snapshot(registry: Registry) -> None:
    pin = registry.pin("home", lineage="FM")
    pin.check(snapshot="FM@0001", representation="penultimate", width=64, dtype="float32")
    assert registry.pinned("home") == pin


def test_a_damaged_pin_file_is_named(registry: Registry) -> None:
    registry.pin("home", lineage="FM")
    file = registry.root / "pins" / "home.json"
    file.write_text("{")
    with pytest.raises(RegistryError, match=str(file)):
        registry.pinned("home")


def test_only_the_changed_is_written(registry: Registry) -> None:
    weights = {"table": torch.randn(8192, 64), "tower": torch.randn(256, 256), "bias": torch.randn(256)}
    first = publish(registry, 10, tensors=weights)
    assert first.share_written == 1.0
    changed = weights | {"table": weights["table"].clone(), "bias": weights["bias"] + 1}
    changed["table"][::100] += 1.0
    second = publish(registry, 20, tensors=changed, parent=first.name)
    assert second.share_written == pytest.approx((82 * (64 * 4 + 8) + 256 * 4) / (8192 * 256 + 256 * 256 * 4 + 256 * 4))
    other = publish(registry, 30, tensors=changed, parent=second.name, lineage="Other")
    assert other.share_written == 0.0
    for snapshot, expected in ((first, weights), (second, changed), (other, changed)):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in snapshot.load().items())
        assert digest(snapshot.load()) == snapshot.manifest["weights_digest"]


def test_prune_frees_what_nobody_needs(registry: Registry) -> None:
    def objects() -> set[str]:
        return {path.stem for path in registry.root.glob("objects/*/*")}

    table, parent = torch.zeros(8192, 64), None
    for watermark in range(1, 6):
        table = table.clone()
        table[watermark] = watermark
        parent = publish(
            registry, watermark, tensors={"table": table, "bias": table[:2] + watermark}, parent=parent
        ).name
    publish(registry, 9, lineage="Other")
    left_over = registry.root / "objects/00/.00.safetensors.partial"
    left_over.parent.mkdir(exist_ok=True)
    left_over.write_bytes(b"half")
    assert registry.prune("FM", keep=1) == ["FM@0001", "FM@0002", "FM@0003"]
    remaining = [*registry.list("FM"), *registry.list("Other")]
    assert objects() == {digest for snapshot in remaining for digest in snapshot.weights.objects}
    assert torch.equal(registry.current("FM").load()["table"], table)
    assert registry.verify() == []


def test_a_snapshot_pruned_while_it_is_held_says_so(registry: Registry) -> None:
    held = publish(registry, 1)
    publish(registry, 2)
    publish(registry, 3)
    registry.prune("FM", keep=1)
    with pytest.raises(RegistryError, match="FM@0001 has been pruned meanwhile"):
        held.load()


def test_an_unknown_format_is_refused(registry: Registry) -> None:
    folder = publish(registry, 10).path
    data = (folder / "manifest.json").read_bytes().replace(b'"format": 2', b'"format": 9')
    (folder / "manifest.json").write_bytes(data)
    (folder / "READY").write_text(hashlib.sha256(data).hexdigest())
    with pytest.raises(RegistryError, match="format 9, readable is 2"):
        registry.get("FM@0001")
