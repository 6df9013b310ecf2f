"""``hypercast transfer report --html``: one page of a run, beside what is printed."""

import json
from pathlib import Path

from typer.testing import CliRunner

from hypercast.cli import main as cli


def test_the_page_of_a_run(copy_of_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "pages" / "report.html"
    command = ["transfer", "report", "--run", str(copy_of_run), "--html", str(file)]
    printed = CliRunner().invoke(cli.app, command, catch_exceptions=False)
    assert printed.exit_code == 0, printed.output
    assert f"The page: {file}" in printed.stdout
    text = file.read_text(encoding="utf-8")
    for part in ("<h1>tiny</h1>", "late (windows 3 to 4, 2 present)", "Coverage and staleness", "Ladder of arms"):
        assert part in text
    assert text.count(">100.0 %<") == 2  # fresh on both surfaces: the runtime notes coverage where the page looks
    quiet = CliRunner().invoke(cli.app, [*command, "--json"], catch_exceptions=False)
    assert json.loads(quiet.stdout)["task"] == "purchase"
    assert file.read_text(encoding="utf-8") == text
