"""``hypercast data import MAPPING.yaml``: the profile, the import, and mistakes in one clear message each."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from hypercast.cli import main as cli
from streaming.dataset import Dataset
from tests.streaming.importers.mapping.shop import SHOP, shop_log, write_csv


def shown(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def said(*arguments: object) -> Any:
    return json.loads(shown(*arguments, "--json"))


@pytest.fixture
def mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the program with a mistake in its arguments; returns its message."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["hypercast", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return err.strip()

    return run


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A mapping file and its log, in which 4 of 400 rows have no user."""
    log = shop_log()
    users = [None if n < 4 else user for n, user in enumerate(log["user"].to_pylist())]
    write_csv(log.set_column(0, "user", [users]), tmp_path / "log.csv")
    path = tmp_path / "shop.yaml"
    path.write_text(yaml.safe_dump({**SHOP, "max_bad_share": 0.02}))
    return path


def test_a_dry_run_says_what_there_is_and_leaves_nothing(shop: Path, tmp_path: Path) -> None:
    profile = said("data", "import", shop, "--dry-run")
    assert profile["rows"] == 396 and profile["bad"][0]["rows"] == 4
    assert {each["severity"] for each in profile["findings"]} <= {"note", "warning"}
    text = shown("data", "import", shop, "--dry-run", "--out", tmp_path / "data")
    assert "home" in text and "click rate" in text and "bad rows, 4: user: no id" in text and "warning: " in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "shop.yaml"]


def test_an_import_says_where_bad_rows_are(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    done = said("data", "import", shop, "--out", out)
    assert done["dataset"] == str(out) and (done["rows"], done["bad_rows"]) == (396, 4)
    assert len(pq.read_table(done["quarantine"])) == 4
    assert said("data", "validate", out)["valid"]
    assert said("data", "describe", out)["candidates"] == 396
    assert Dataset.open(out).config.name == "shop"


def test_files_may_lie_elsewhere_than_the_mapping(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "log.csv").rename(tmp_path / "elsewhere" / "log.csv")
    done = said("data", "import", shop, "--source", tmp_path / "elsewhere", "--out", tmp_path / "data")
    assert done["rows"] == 396


def test_mistakes_in_one_clear_message(shop: Path, tmp_path: Path, mistake: Callable[..., str]) -> None:
    out = tmp_path / "data"
    assert "--out is missing" in mistake("data", "import", shop)
    assert "--set means nothing to" in mistake("data", "import", shop, "--out", out, "--set", "seed=1")
    assert "--dry-run means nothing to synthetic" in mistake("data", "import", "synthetic", "--dry-run")
    assert "no importer 'shop'" in mistake("data", "import", "shop", "--out", out)
    assert "cannot be read" in mistake("data", "import", tmp_path / "none.yaml", "--out", out)
    assert "--source is missing" in mistake("data", "import", "kuairand", "--out", out)
    shop.write_text(shop.read_text().replace("user: user", "usr: user"))
    assert "Allowed keys here" in mistake("data", "import", shop, "--out", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "shop.yaml"]
