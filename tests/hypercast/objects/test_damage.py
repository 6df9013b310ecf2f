"""One flipped byte in any file of a registry is found by reading it or by verify, and never served."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies

from hypercast import pins
from hypercast.errors import RegistryError
from hypercast.objects import record, weights
from hypercast.registry import Registry
from hypercast.tensors import digest


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Three snapshots: one in full, one by rows, and one of another lineage that refers to the second."""
    monkeypatch.setattr(weights, "LARGE", 1024)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    registry, table = Registry(tmp_path / "registry"), torch.zeros(64, 8)
    publish = {"schema_hash": "s", "dims": {"p": 4}, "dtype": "float16", "tasks": [], "metrics": {}, "metadata": {}}
    state = {"table": table, "bias": torch.ones(4)}
    registry.publish(lineage="FM", tensors=state, watermark=10, parent=None, **publish)
    state = {"table": table.index_fill(0, torch.tensor([5]), 1.0), "bias": torch.ones(4)}
    registry.publish(lineage="FM", tensors=state, watermark=20, parent="FM@0001", **publish)
    state = state | {"bias": torch.zeros(4)}
    registry.publish(lineage="Other", tensors=state, watermark=20, parent="FM@0002", **publish)
    registry.move("FM", "stable", expected=None, to="FM@0001")
    registry.pin("home", lineage="FM", version=1)
    registry.pin("mail", lineage="FM")
    return registry


def readings(registry: Registry) -> dict[str, Callable[[], Any]]:
    """All that can be read, each for itself."""
    found: dict[str, Callable[[], Any]] = {}
    for name in ("FM@0001", "FM@0002", "Other@0001"):
        found[name] = lambda name=name: (registry.get(name).manifest, digest(registry.get(name).load()))
    for lineage, channel in (("FM", "latest"), ("FM", "stable"), ("Other", "latest")):
        found[f"{lineage}/{channel}"] = lambda lineage=lineage, channel=channel: registry.channel(lineage, channel).name
    for expert in ("home", "mail"):
        found[expert] = lambda expert=expert: registry.pinned(expert)
    return found


def read(registry: Registry) -> dict[str, Any]:
    """What each reading gives; those that are refused are left out."""
    answers = {}
    for name, reading in readings(registry).items():
        try:
            answers[name] = reading()
        except RegistryError:
            continue
    return answers


def flips(path: Path, chance: random.Random) -> list[int]:
    """Where to flip: the first byte, the last, and some between."""
    size = path.stat().st_size
    return sorted({0, size - 1, *(chance.randrange(size) for _ in range(14))})


def test_a_flipped_byte_in_any_file(registry: Registry) -> None:
    whole, chance = read(registry), random.Random(0)
    assert registry.verify() == [] and whole.keys() == readings(registry).keys()
    files = [path for path in sorted(registry.root.rglob("*")) if path.is_file() and path.stat().st_size]
    assert len(files) == 4 + 3 * 2 + 3 + 2  # objects, manifests with READY, channels, pins
    for path in files:
        data = path.read_bytes()
        for place in flips(path, chance):
            path.write_bytes(data[:place] + bytes([data[place] ^ chance.randrange(1, 256)]) + data[place + 1 :])
            served = read(registry)
            assert all(whole[name] == answer for name, answer in served.items()), (path, place)
            assert len(served) < len(whole), (path, place)
            damage = registry.verify()
            assert any(each.where in (str(path), str(path.with_name("manifest.json"))) for each in damage), (
                path,
                place,
            )
            assert all(each.what and each.remedy for each in damage)
        path.write_bytes(data)
    assert read(registry) == whole and registry.verify() == []


@pytest.mark.parametrize("cut", [lambda data: b"", lambda data: data[:-1], lambda data: data + b"\n"])
def test_files_cut_short_or_drawn_out(registry: Registry, cut: Callable[[bytes], bytes]) -> None:
    whole = read(registry)
    for path in [path for path in registry.root.rglob("*") if path.is_file() and path.stat().st_size]:
        data = path.read_bytes()
        path.write_bytes(cut(data))
        assert all(whole[name] == answer for name, answer in read(registry).items())
        assert registry.verify()
        path.write_bytes(data)


def test_the_damage_says_whom_it_hurts_and_what_to_do(registry: Registry) -> None:
    (rows,) = registry.get("FM@0002").weights.components["table"].rows
    path = registry.contents.path(rows)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (damage,) = registry.verify()
    assert damage.where == str(path)
    assert damage.what == "its SHA-256 differs; it hurts FM@0002, Other@0001"
    assert "publish again" in damage.remedy and damage.remedy.endswith("Without damage: FM@0001.")
    path.unlink()
    (damage,) = registry.verify()
    assert damage.what == "missing; it hurts FM@0002, Other@0001"


def test_what_nobody_needs_hurts_nobody(registry: Registry) -> None:
    digest, _ = registry.contents.put({"left": torch.ones(3)})
    assert registry.verify() == []
    path = registry.contents.path(digest)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    (damage,) = registry.verify()
    assert damage.what == "its SHA-256 differs; it hurts no snapshot" and damage.remedy.startswith("Prune")
    registry.prune("FM", keep=3)
    assert registry.verify() == []


def test_lost_files(registry: Registry) -> None:
    ready = registry.get("FM@0001").path / "READY"
    data = ready.read_bytes()
    ready.unlink()
    found = {Path(each.where).name: each.what for each in registry.verify()}
    assert found["READY"] == "missing: FM@0001 cannot be seen without it"
    assert found["stable.json"] == "points to FM@0001, which cannot be opened"
    assert found["home.json"] == "pins home to FM@0001, which cannot be opened"
    ready.write_bytes(data)
    assert registry.verify() == []
    assert pins.read(registry.root, "home")[0].version == 1


@hypothesis.settings(
    max_examples=50,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    value=strategies.dictionaries(strategies.text(), strategies.integers() | strategies.text(), max_size=4),
    place=strategies.integers(0, 10_000),
    mask=strategies.integers(1, 255),
)
def test_a_record_is_read_back_or_refused(tmp_path: Path, value: dict[str, Any], place: int, mask: int) -> None:
    path = tmp_path / "record.json"
    value.pop("sha256", None)
    record.write(path, value)
    assert record.read(path, remedy="") == value
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= mask
    path.write_bytes(data)
    with pytest.raises(RegistryError, match=f"{path}.*Mend it"):
        record.read(path, remedy="Mend it.")
