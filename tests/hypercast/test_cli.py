"""The command line: what each command prints, and that a mistake is one clear message and status 2."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hypercast.cli import main as cli
from hypercast.registry import Registry
from streaming.dataset import Dataset

SMALL = ["--set", "users=6", "--set", "windows=2", "--set", "items=12", "--set", "candidates=3"]


def said(*arguments: object) -> Any:
    """What a command prints with ``--json``, read by a strict reader: standard output holds nothing else."""
    result = CliRunner().invoke(cli.app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(result.stdout, parse_constant=refuse)


def shown(*arguments: object) -> str:
    """What a command prints for people."""
    result = CliRunner().invoke(cli.app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the program with a mistake in its arguments; returns its message."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["hypercast", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        return err.strip()

    return run


def test_data_import_validate_describe(tmp_path: Path) -> None:
    path = tmp_path / "data"
    imported = said("data", "import", "synthetic", "--out", path, *SMALL)
    assert imported["dataset"] == str(path)
    assert said("data", "validate", path) == {"dataset": str(path), "valid": True}
    described = said("data", "describe", path)
    assert 0 < described.pop("purchase rate") < 1
    assert described.pop("engagements") >= 6 * 2 * 4
    assert described.pop("events read by impression over events read by request") > 1
    assert described.pop("bytes by impression over bytes by request") > 1
    assert described == {
        "name": "synthetic",
        "windows": 2,
        "requests": 6 * 2 * 2,
        "candidates": 6 * 2 * 2 * 3,
        "items": 12,
        "users": 6,
        "surfaces": "surface_0, surface_1, surface_2",
    }
    assert "surface_0, surface_1, surface_2" in shown("data", "describe", path)


def test_run_goes_to_the_end_and_reports(platform_file: Callable[..., Path], tiny_run: Path, tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    file = platform_file(run)
    file.write_text(file.read_text().replace(f"run: {run}", f"run: {elsewhere}"))
    report = said("run", file, "--run", run)
    assert not elsewhere.exists()
    assert f"run: {run}" in (run / "platform.yaml").read_text()
    assert report == said("transfer", "report", "--run", tiny_run)
    assert report["task"] == "purchase" and not report["untouched"]
    assert list(report["spans"]) == ["early", "late"]
    gain = report["spans"]["late"]["surfaces"]["all surfaces"]["gains"]["treated_vs_control"]
    assert gain["lo"] <= gain["gain_pct"] <= gain["hi"]
    again = shown("run", file, "--run", run)
    assert f"hypercast transfer ui --run {run}" in again.replace("\n", "")
    assert "surface_1" in again


def test_transfer_report_is_of_the_folder_that_is_named(
    copy_of_run: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("surface_0", "surface_1"):
        (copy_of_run / "predictions" / name / "window=00004.parquet").unlink()
    monkeypatch.chdir(copy_of_run.parent)
    report = said("transfer", "report", "--run", copy_of_run.name)
    assert report["spans"]["late"]["windows"] == 1
    assert said("transfer", "report", "--run", tiny_run)["spans"]["late"]["windows"] == 2
    untouched = said("transfer", "report", "--run", tiny_run, "--untouched")
    assert untouched["untouched"]
    assert "NE control" in shown("transfer", "report", "--run", tiny_run)


def test_foundation_list(tiny_run: Path, tmp_path: Path) -> None:
    snapshots = said("foundation", "list", "--run", tiny_run)
    assert [one["snapshot"] for one in snapshots] == ["FM@0004", "FM@0005"]
    assert snapshots[1]["parent"] == "FM@0004"
    assert snapshots[0]["watermark"] < snapshots[1]["watermark"]
    assert "FM@0005" in shown("foundation", "list", "--run", tiny_run)
    assert said("foundation", "list", "--run", tmp_path) == []
    assert "nothing there yet" in shown("foundation", "list", "--run", tmp_path)


def test_expert_list_pin_rollback(copy_of_run: Path, mistake: Callable[..., str]) -> None:
    here = ("--run", copy_of_run)
    follows = [{"expert": name, "pinned to": "FM"} for name in ("surface_0", "surface_1")]
    assert said("expert", "list", *here) == follows
    assert said("expert", "pin", "surface_1", "--version", 5, *here) == {"expert": "surface_1", "pinned to": "FM@0005"}
    assert said("expert", "list", *here)[1] == {"expert": "surface_1", "pinned to": "FM@0005"}
    assert said("expert", "rollback", "surface_1", *here) == follows[1]
    assert said("expert", "list", *here) == follows
    assert "one pin only: nothing to go back to" in mistake("expert", "rollback", "surface_1", *here)
    assert "'surfaces' is not pinned" in mistake("expert", "rollback", "surfaces", *here)
    assert "no snapshot FM@0009. There are: FM@0004" in mistake("expert", "pin", "surface_1", "--version", 9, *here)


def rows_of(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in said("store", "ls", "--run", run) if row["kind"] == kind]


def test_store_ls(copy_of_run: Path, tmp_path: Path) -> None:
    assert [(row["name"], row["window"], row["rows"]) for row in rows_of(copy_of_run, "segment")] == [
        (f"FM@000{window}", window, 16 * 2 * 6) for window in (1, 2, 3, 4)
    ]
    assert [(row["name"], row["channels"]) for row in rows_of(copy_of_run, "snapshot")] == [
        ("FM@0004", ""),
        ("FM@0005", "latest"),
    ]
    online = rows_of(copy_of_run, "online")
    assert online[-1]["name"] == "FM@0004" and "FM/latest" in online[-1]["channels"]
    assert "FM@0004" in shown("store", "ls", "--run", copy_of_run)
    assert said("store", "ls", "--run", tmp_path) == []


def test_store_inspect(copy_of_run: Path, mistake: Callable[..., str]) -> None:
    found = said("store", "inspect", "FM@0004", "--run", copy_of_run)
    assert found["dims"] == {"penultimate": 8} and 0 < found["share_written"] <= 1
    assert list(found["log"]) == ["4"] and found["log"]["4"]["rows"] == 16 * 2 * 6
    assert found["online"]["width"] == 8 and "FM/latest" in found["online"]["pointers"]
    pruned = said("store", "inspect", "FM@0002", "--run", copy_of_run)
    assert pruned["registry"] is None and list(pruned["log"]) == ["2"]
    assert "no snapshot FM@0009" in mistake("store", "inspect", "FM@0009", "--run", copy_of_run)
    assert "LINEAGE@NNNN" in mistake("store", "inspect", "../FM", "--run", copy_of_run)


def test_store_verify_names_what_is_damaged(copy_of_run: Path) -> None:
    assert said("store", "verify", "--run", copy_of_run) == {"damaged": 0, "damages": []}
    files = [
        copy_of_run / "tae_log/segments/FM@0003/window=00003.arrow",
        next((copy_of_run / "registry/objects").rglob("*.safetensors")),
        max(
            (path for path in (copy_of_run / "online").rglob("*") if path.is_file()),
            key=lambda path: path.stat().st_size,
        ),
        copy_of_run / "probe/probe.json",
        next((copy_of_run / "probe").glob("*.adapter")),
    ]
    for file in files:
        whole = file.read_bytes()
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        result = CliRunner().invoke(cli.app, ["store", "verify", "--run", str(copy_of_run), "--json"])
        assert result.exit_code == 1
        damages = json.loads(result.stdout)["damages"]
        assert damages and all(file.name in str(damage) and damage["remedy"] for damage in damages)
        file.write_bytes(whole)
    assert said("store", "verify", "--run", copy_of_run)["damaged"] == 0


def test_store_gc(copy_of_run: Path) -> None:
    left_over = copy_of_run / "tae_log/segments/FM@0003/.window=00009.arrow.partial"
    left_over.write_bytes(b"half")
    assert said("store", "gc", "--run", copy_of_run)["bytes freed"]["log"] == 4
    assert said("store", "gc", "--keep", 1, "--run", copy_of_run)["snapshots removed"] == []  # one can go back to it
    registry = Registry(copy_of_run / "registry")
    newest = registry.current("FM")
    said_of = {name: newest.manifest[name] for name in ("schema_hash", "dims", "dtype", "tasks", "metrics", "metadata")}
    tensors = newest.load()
    registry.publish(lineage="FM", tensors=tensors, watermark=newest.watermark + 1, parent=newest.name, **said_of)
    assert said("store", "gc", "--run", copy_of_run)["snapshots removed"] == []
    assert said("store", "gc", "--keep", 1, "--run", copy_of_run)["snapshots removed"] == ["FM@0004"]
    assert said("store", "verify", "--run", copy_of_run)["damaged"] == 0


def test_store_refuses_folders_that_are_not_there(tmp_path: Path, mistake: Callable[..., str]) -> None:
    for command in (["ls"], ["inspect", "FM@0001"], ["verify"], ["gc"], ["gc", "--keep", 1]):
        assert "nothing: no such folder" in mistake("store", *command, "--run", tmp_path / "nothing")
    assert "--keep" in mistake("store", "gc", "--keep", 0, "--run", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_doctor() -> None:
    result = CliRunner().invoke(cli.app, ["doctor", "--json"], catch_exceptions=False)
    report = json.loads(result.stdout)
    assert report["healthy"] == (result.exit_code == 0)
    assert {"python", "torch stack", "mlflow", "attention: reference"} <= {one["name"] for one in report["findings"]}


def test_an_unknown_importer(mistake: Callable[..., str], tmp_path: Path) -> None:
    message = mistake("data", "import", "[movies]", "--out", tmp_path / "data")
    assert message == (
        "error: no importer '[movies]'; allowed are complete-journey, synthetic; with --source: kuairand, movielens, "
        "taobao, criteo; or a mapping file such as shop.yaml. Example: complete-journey"
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("colour=red", "--set: key 'colour': Extra inputs are not permitted; got 'red'"),
        ("users=none", "--set: key 'users': Input should be a valid integer"),
        ("users", "--set users: give KEY=VALUE"),
        ("candidates=99", "candidates must be at most items (60); got 99"),
    ],
)
def test_a_wrong_setting_of_an_importer(
    setting: str, message: str, mistake: Callable[..., str], tmp_path: Path
) -> None:
    assert message in mistake("data", "import", "synthetic", "--out", tmp_path / "data", "--set", setting)
    assert list(tmp_path.iterdir()) == []


def test_an_import_does_not_overwrite(mistake: Callable[..., str], small_dataset: Dataset) -> None:
    message = mistake("data", "import", "synthetic", "--out", small_dataset.path, *SMALL)
    assert message.startswith(f"error: {small_dataset.path}: exists already, and an import never overwrites.")


def test_a_folder_that_is_no_data_set(mistake: Callable[..., str], tmp_path: Path) -> None:
    for command in ("validate", "describe"):
        assert "not a data set, there is no dataset.yaml in it" in mistake("data", command, tmp_path)


def test_a_missing_file(mistake: Callable[..., str], tmp_path: Path) -> None:
    missing = f"{tmp_path}/nothing.yaml: cannot be read (No such file or directory)"
    assert missing in mistake("run", tmp_path / "nothing.yaml")
    assert f"{tmp_path}/platform.yaml: cannot be read" in mistake("transfer", "report", "--run", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key(mistake: Callable[..., str], platform_file: Callable[..., Path], tmp_path: Path) -> None:
    file = platform_file(tmp_path / "run", "colour: [red, green]\n")
    message = mistake("run", file)
    assert message.startswith(f"error: {file}: key 'colour': Extra inputs are not permitted; got ['red', 'green'].")
    assert "Allowed keys here: name, dataset, run, seeds" in message
    assert "Example:\n" in message


def test_a_data_set_that_is_not_there(
    mistake: Callable[..., str], platform_file: Callable[..., Path], small_dataset: Dataset, tmp_path: Path
) -> None:
    file = platform_file(tmp_path / "run")
    file.write_text(file.read_text().replace(str(small_dataset.path), str(tmp_path / "gone")))
    assert f"{tmp_path}/gone: not a data set" in mistake("run", file)


def test_the_run_folder_of_another_configuration(
    mistake: Callable[..., str], platform_file: Callable[..., Path], copy_of_run: Path, tmp_path: Path
) -> None:
    file = platform_file(tmp_path / "other")
    file.write_text(file.read_text().replace("seeds: [0]", "seeds: [3]"))
    message = mistake("run", file, "--run", copy_of_run)
    assert message.startswith(f"error: {copy_of_run}/platform.yaml: this folder holds a run with another configuration")
    assert "Give another folder" in message


def test_a_command_that_does_not_exist(mistake: Callable[..., str]) -> None:
    assert "No such command 'fly'" in mistake("fly")
    assert "--out is missing" in mistake("data", "import", "synthetic")
