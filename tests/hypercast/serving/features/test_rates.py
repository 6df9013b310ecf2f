"""Label rates of an export: what training would have read in the window after, or refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from experts.export import SETTINGS, TABLES, export_rates
from hypercast.errors import RegistryError
from hypercast.serving.features.rates import RateTables
from hypercast.serving.precision.sample import as_asked
from streaming.config import dump
from streaming.dataset import Dataset
from streaming.importers.synthetic import Synthetic
from streaming.labels.rate_columns import LabelRateColumns
from streaming.workspace import Workspace

RATES = LabelRateColumns.Config(half_life=2.0, strength=3.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels come days later, and catalogues list neither all items nor all users."""
    config = Synthetic.Config(users=12, items=24, windows=5, candidates=5, surfaces=2, label_delay_seconds=4 * 86400.0)
    path = config.build(tmp_path_factory.mktemp("rates") / "data").path
    for name in ("items", "users"):
        table = pq.read_table(path / f"{name}.parquet")
        pq.write_table(table.take(np.flatnonzero(np.arange(len(table)) % 3)), path / f"{name}.parquet")
    return path


def open_(path: Path) -> Workspace:
    return Workspace(Dataset.open(path))


def export(data: Path, folder: Path, *, before: int, rates: LabelRateColumns.Config = RATES) -> Path:
    """The folder of an arm whose expert reads ``rates``."""
    folder.mkdir(parents=True, exist_ok=True)
    told = export_rates(folder, open_(data).with_label_rates(rates), before=before)
    assert told is not None
    arm = folder / "control"
    arm.mkdir(exist_ok=True)
    (arm / SETTINGS).write_text(dump(told))
    return arm


@pytest.mark.parametrize("rates", [RATES, LabelRateColumns.Config(tasks=["multiple"], half_life=0.5)])
def test_what_is_served_is_what_training_reads_to_the_bit(
    data: Path, tmp_path: Path, rates: LabelRateColumns.Config
) -> None:
    plain = open_(data)
    training = plain.with_label_rates(rates)
    for window in plain.dataset.windows:
        arm = export(data, tmp_path / str(window.index), before=window.index, rates=rates)
        served = RateTables(plain).of(arm)
        assert served is not None
        stored = plain.requests(window.index)
        read = training.requests(window.index).dense
        assert (stored.item == len(plain.items.ids)).any() and (stored.user == len(plain.users.ids)).any()
        said = served.beside(as_asked(plain, stored)).dense
        assert said.dtype == read.dtype == np.float32
        assert said.tobytes() == read.tobytes()
        assert served.inputs(plain.inputs) == training.inputs
        assert read.shape[1] == len(training.inputs.dense) > len(plain.inputs.dense)


def test_after_the_last_window_it_is_what_a_longer_data_set_reads_next(data: Path, tmp_path: Path) -> None:
    shorter = tmp_path / "shorter"
    shutil.copytree(data, shorter)
    described = yaml.safe_load((shorter / "dataset.yaml").read_text())
    described["window_boundaries"] = described["window_boundaries"][:-1]
    (shorter / "dataset.yaml").write_text(yaml.safe_dump(described))
    shutil.rmtree(shorter / "requests" / "window=00005")
    last = open_(shorter).dataset.windows[-1].index
    assert last == 4
    arms = [export(path, tmp_path / path.name / "export", before=last + 1) for path in (data, shorter)]
    assert (arms[0].parent / TABLES).read_bytes() == (arms[1].parent / TABLES).read_bytes()
    earlier = export(data, tmp_path / "earlier", before=last)
    assert (earlier.parent / TABLES).read_bytes() != (arms[0].parent / TABLES).read_bytes()


def test_a_workspace_that_has_read_on_exports_the_same(data: Path, tmp_path: Path) -> None:
    training = open_(data).with_label_rates(RATES)
    for window in training.dataset.windows:
        training.requests(window.index)
    (tmp_path / "far").mkdir()
    export_rates(tmp_path / "far", training, before=4)
    arm = export(data, tmp_path / "fresh", before=4)
    assert (tmp_path / "far" / TABLES).read_bytes() == (arm.parent / TABLES).read_bytes()


def test_who_reads_no_rates_has_no_file_of_them(data: Path, tmp_path: Path) -> None:
    plain = open_(data)
    assert export_rates(tmp_path / "export", plain, before=3) is None
    assert not (tmp_path / "export").exists()
    assert RateTables(plain).of(tmp_path) is None


def test_equal_rates_are_opened_once(data: Path, tmp_path: Path) -> None:
    tables = RateTables(open_(data))
    arms = [export(data, tmp_path / name, before=before) for name, before in (("a", 3), ("b", 3), ("c", 4))]
    one, same, other = (tables.of(arm) for arm in arms)
    assert one is same
    assert one is not other


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def _turn(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def _say(file: Path, **changes: object) -> None:
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda arm: (arm.parent / TABLES).unlink(), f"{TABLES}: missing"),
        (lambda arm: _cut(arm.parent / TABLES), f"{TABLES}: damaged"),
        (lambda arm: _turn(arm.parent / TABLES), f"{TABLES}: damaged"),
        (lambda arm: (arm / SETTINGS).write_text("names: ["), f"{SETTINGS}: damaged"),
        (lambda arm: _say(arm / SETTINGS, format=0), f"{SETTINGS}: of format 0"),
        (lambda arm: _say(arm / SETTINGS, names=["label_rate/click/item"]), "another data set than"),
        (lambda arm: _say(arm / SETTINGS, columns={"tasks": ["click"]}), "has no task 'click'"),
    ],
)
def test_what_is_missing_damaged_or_of_others_is_refused(
    data: Path, tmp_path: Path, spoil: Callable[[Path], object], says: str
) -> None:
    arm = export(data, tmp_path / "export", before=3)
    spoil(arm)
    with pytest.raises(RegistryError, match=says) as caught:
        RateTables(open_(data)).of(arm)
    assert "export again" in str(caught.value)
