"""The worked examples of docs/data.md: each one's folder imports, and makes the candidates that stand there."""

import re
from pathlib import Path
from typing import Any

import pytest

from streaming.importers.formats.choice import FORMATS
from tests.streaming.importers.formats.imports import import_layout

DOCS = Path(__file__).parents[4] / "docs" / "data.md"


def blocks(name: str) -> dict[str, str]:
    """Titled blocks of the format's section, by title."""
    section = re.search(rf"^### {name}$(.*?)^##", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert section is not None
    return dict(re.findall(r"^```\w+ title=(\S+)\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL))


def cell(value: Any) -> str:
    """As the page writes it: times in UTC, labels as whole numbers."""
    if isinstance(value, float):
        return f"{value:g}"
    return value.replace(tzinfo=None).isoformat() if hasattr(value, "isoformat") else str(value)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_example_makes_what_the_page_says(name: str, tmp_path: Path) -> None:
    files = blocks(name)
    columns, *expected = (line.split() for line in files.pop("candidates").splitlines())
    for title, text in files.items():
        (tmp_path / "source" / title).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / title).write_text(text, encoding="utf-8")
    made = import_layout(FORMATS[name].layout(tmp_path / "source"), tmp_path / "source", tmp_path / "dataset")
    fields = [column if column in made.candidates[0] else f"label_{column}" for column in columns]
    found = sorted([cell(row[field]) for field in fields] for row in made.candidates)
    assert found == sorted(expected)
