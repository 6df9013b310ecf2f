"""``hypercast serve`` from the command line, and what it refuses."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hypercast.cli.main import app
from streaming.config import dump
from streaming.errors import UserError
from tests.hypercast.serving.conftest import Played
from tests.hypercast.serving.wire import ask
from tests.hypercast.serving.world import configured


@pytest.mark.slow
def test_it_serves_until_it_is_told_to_end(played: Played, tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(dump(configured(played, tmp_path)))
    command = [sys.executable, "-c", "from hypercast.cli.main import main; main()", "serve", str(file)]
    with subprocess.Popen([*command, "--port", "0", "--mode", "expert"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = None
        while found is None:
            line = process.stderr.readline()
            assert line, "it ended"
            found = re.search(r"\(expert\) on http://127.0.0.1:(\d+)", line)
        port = int(found[1])
        assert ask(port, "GET", "/v1/models")[1]["mode"] == "expert"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mode", "best"], "expert"),
        (["--host", "0.0.0.0"], "open_to_all"),
        (["--run", "/nowhere"], "hypercast run"),
    ],
)
def test_what_it_refuses(played: Played, tmp_path: Path, options: list[str], words: str) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(dump(played.config))
    result = CliRunner().invoke(app, ["serve", str(file), *options])
    assert isinstance(result.exception, UserError) and words in str(result.exception)
