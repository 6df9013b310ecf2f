"""No damaged byte of the probe or of its adapters goes unseen."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hypercast.errors import RegistryError
from hypercast.store import adapter
from streaming import files
from transfer import probe as probes
from transfer.probe import Probe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A probe of four candidates of two requests, and an adapter."""
    probe = Probe(window=3, request_id=np.array([7, 7, 9, 9]), candidate_id=np.arange(4), bandwidth=1.25)
    probe.write(tmp_path)
    vector_ND = np.random.default_rng(0).normal(size=(4, 2))
    fitted = adapter.fit(
        source="FM@0002", target="FM@0001", source_ND=vector_ND, target_NE=2 * vector_ND, group_N=probe.request_id
    )
    files.write_bytes(tmp_path / "FM@0002-to-FM@0001.adapter", fitted.to_bytes())
    return tmp_path


def flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def test_what_was_written_is_read(folder: Path) -> None:
    probe = Probe.read(folder)
    assert probe is not None and (probe.window, probe.bandwidth) == (3, 1.25)
    assert (probe.request_id.tolist(), probe.candidate_id.tolist()) == ([7, 7, 9, 9], [0, 1, 2, 3])
    assert probes.verify(folder) == []
    assert probes.verify(folder / "nothing") == []


@pytest.mark.parametrize("name", ["probe.json", "FM@0002-to-FM@0001.adapter"])
def test_any_flipped_bit_is_found(folder: Path, name: str) -> None:
    path = folder / name
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(flipped(data, place, place % 8))
        (damage,) = probes.verify(folder)
        assert damage.where == str(path) and str(path) in damage.what and damage.remedy
        if name == "probe.json":
            with pytest.raises(RegistryError, match=r"probe\.json: not what was written.*Restore"):
                Probe.read(folder)


@pytest.mark.parametrize("shorten", [lambda data: b"", lambda data: data[: len(data) // 2]])
def test_what_is_cut_short_is_found(folder: Path, shorten: Callable[[bytes], bytes]) -> None:
    for path in list(folder.iterdir()):
        path.write_bytes(shorten(path.read_bytes()))
    assert [Path(damage.where).name for damage in probes.verify(folder)] == ["probe.json", "FM@0002-to-FM@0001.adapter"]


def test_an_adapter_under_another_name_is_found(folder: Path) -> None:
    path = folder / "FM@0002-to-FM@0001.adapter"
    path.rename(folder / "FM@0003-to-FM@0001.adapter")
    (damage,) = probes.verify(folder)
    assert "it is the adapter from FM@0002 to FM@0001" in damage.what
