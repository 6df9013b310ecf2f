"""A foundation model of one surface: a lineage of its own, blind to the others, resumed with the same bits."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hypercast.registry import Registry
from hypercast.runtime import single_surface
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.ownership import OwnershipError, own
from hypercast.runtime.plan import run_lock
from hypercast.runtime.single_surface import SingleSurfaceJob, reference_folder, train_single_surfaces
from streaming.dataset import Dataset, read_parquet
from streaming.errors import ConfigError
from streaming.importers.synthetic import Synthetic
from streaming.workspace import Workspace
from transfer import predictions
from transfer.predictions import Column, prediction_table
from transfer.reference.join import has_arm

COLUMN = Column("purchase", "fm_single_surface", 3).name
LINEAGE = "FM_surface_1"


def config(dataset: Path, run: Path) -> PlatformConfig:
    model = {"width": 8, "representation": 4, "tower": 8, "history": 8, "stack": {"layers": 1}}
    foundation = {"batch_size": 16, "model": {**model, "vocabulary": {"default": 64}}}
    return PlatformConfig.model_validate(
        {"name": "one", "dataset": {"path": dataset}, "run": run, "seeds": [3, 4], "foundation": foundation}
    )


def play(dataset: Dataset, run: Path, *, windows: int, surface: str = "surface_1") -> Path:
    job = SingleSurfaceJob(config(dataset.path, run), run, surface)
    for window in dataset.windows[:windows]:
        metrics = job.run_window(window)
        assert metrics["train_loss"] > 0
    return run


def said(run: Path, window: int) -> pa.Table:
    return predictions.read(reference_folder(run), surface="surface_1", window=window)


@pytest.fixture(scope="module")
def played(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three windows. Read only."""
    return play(tiny_dataset, tmp_path_factory.mktemp("played"), windows=3)


def test_predictions_are_of_the_surface_by_a_lineage_of_its_own(
    played: Path, tiny_dataset: Dataset, workspace: Workspace
) -> None:
    assert [snapshot.lineage for snapshot in Registry(played / "registry").list(LINEAGE)] == [LINEAGE] * 4
    assert not Registry(played / "registry").list("FM")
    assert predictions.surfaces(reference_folder(played)) == ["surface_1"]
    for window in (1, 2, 3):
        own = workspace.requests(window).on_surface(1)
        table = said(played, window)
        assert table["candidate_id"].to_pylist() == own.candidate_id.tolist()
        assert len(set(table[COLUMN].to_pylist())) > 10
        assert Column("multiple", "fm_single_surface", 3).name in table.column_names


def test_other_surfaces_change_nothing(played: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    def change(file: Path, row_change: Any) -> None:
        table = read_parquet(file)
        rows = table.to_pylist()
        for row in rows:
            row_change(row)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)

    def flip(row: dict[str, Any], chosen: Any) -> None:
        labels = row["supervision"]["label_purchase"]
        labels[:] = [1 - y if y is not None and chosen(s) else y for y, s in zip(labels, row["surface"], strict=True)]

    def elsewhere(row: dict[str, Any]) -> None:
        if row["surface"] != 1:
            row["item_id"] = 1000 + (row["item_id"] + 7) % 60

    others = Dataset.open(shutil.copytree(tiny_dataset.path, tmp_path / "others"))
    own = Dataset.open(shutil.copytree(tiny_dataset.path, tmp_path / "own"))
    for window in (1, 2):
        change(others.request_file(window), lambda row: flip(row, lambda surface: surface != 1))
        change(others.engagement_file(window), elsewhere)
        change(own.request_file(window), lambda row: flip(row, lambda surface: surface == 1))
    same = said(play(others, tmp_path / "run_others", windows=3), 3)
    moved = said(play(own, tmp_path / "run_own", windows=3), 3)
    assert same[COLUMN].equals(said(played, 3)[COLUMN])
    assert not moved[COLUMN].equals(said(played, 3)[COLUMN])


def test_l4_its_own_labels_come_after_its_predictions(played: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    early = play(tiny_dataset, tmp_path, windows=2)
    assert said(early, 2).equals(said(played, 2))


def test_resumed_with_the_same_bits(played: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    play(tiny_dataset, tmp_path, windows=2)
    predictions.path_of(reference_folder(tmp_path), "surface_1", 2).unlink()  # as if killed before it was written
    play(tiny_dataset, tmp_path, windows=3)
    for window in (1, 2, 3):
        assert said(tmp_path, window).equals(said(played, window))


def test_unknown_surface(tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no surface 'mailer'"):
        SingleSurfaceJob(config(tiny_dataset.path, tmp_path), tmp_path, "mailer")


def test_all_surfaces_join_the_run(tiny_dataset: Dataset, workspace: Workspace, tmp_path: Path) -> None:
    for surface, index in ((name, tiny_dataset.config.surfaces.index(name)) for name in tiny_dataset.config.surfaces):
        own = workspace.requests(1).on_surface(index)
        said = {Column("purchase", "control", 3): np.full(len(own.item), 0.2)}
        table = prediction_table(own, said, tasks=workspace.inputs.tasks)
        predictions.write(tmp_path, surface=surface, window=1, table=table)
    shares = []
    one = config(tiny_dataset.path, tmp_path).model_copy(update={"windows": 1})
    train_single_surfaces(one, tmp_path, lambda message, share: shares.append(share))
    assert has_arm(tmp_path, arm="fm_single_surface") and has_arm(tmp_path, arm="control")
    assert shares == [pytest.approx(share) for share in (1 / 3, 2 / 3, 1)]


def test_another_process_is_not_written_beside(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_surface, "PATIENCE", 0.0)
    with own(run_lock(tmp_path), patience=0), pytest.raises(OwnershipError, match="another process works"):
        train_single_surfaces(config(tiny_dataset.path, tmp_path), tmp_path, lambda message, share: None)
    assert not (tmp_path / "registry").exists()


def test_a_run_that_learns_or_answers_otherwise_is_no_comparison(tiny_dataset: Dataset, tmp_path: Path) -> None:
    one = config(tiny_dataset.path, tmp_path)
    asked = one.model_copy(update={"asked_days": {"surface_1": {"purchase": 1}}})
    with pytest.raises(ConfigError, match="leave both out"):
        train_single_surfaces(asked, tmp_path, lambda message, share: None)


def test_labels_that_nobody_can_know_yet_are_open_as_in_the_runs_own_tables(tmp_path: Path) -> None:
    late = Synthetic.Config(users=16, items=24, windows=2, label_delay_seconds=3 * 86_400).build(tmp_path / "data")
    workspace, window = Workspace(late), late.windows[-1]
    run = play(late, tmp_path / "run", windows=2)
    own = workspace.outcomes(workspace.requests(window.index).on_surface(1))
    expected = prediction_table(own, {}, tasks=[task.name for task in late.config.tasks])
    label = said(run, window.index)["label_purchase"]
    assert label.to_pylist() == expected["label_purchase"].to_pylist()
    assert 0 < label.null_count < len(label)
