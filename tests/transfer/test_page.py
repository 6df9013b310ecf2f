"""The page: whole, self-contained, and nothing but text from what is called anything."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypercast.training import checkpoint
from transfer import cohort, figures, gain, page, page_parts, predictions, report

SPANS = (gain.Span("early", 1, 2), gain.Span("late", 3, 9))
HOSTILE = "<script>alert('1')</script>&\"$x_$"
VOID = {"meta", "br", "hr", "img", "link"}


class Reader(HTMLParser):
    """Checks that elements close in order, and keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_table) -> Path:
    folder = tmp_path_factory.mktemp("page")
    even = {"control": 0.6, "control_matched": 0.6, "treated": 0.6, "fm_head": 0.6}
    for window in range(1, 5):
        predictions.write(folder, surface="home", window=window, table=make_table(seed=window, requests=80))
        predictions.write(
            folder, surface="mailer", window=window, table=make_table(seed=window + 50, noise=even, requests=80)
        )
    covered = {
        str(window): {
            "coverage/fresh": 1 - window / 10,
            "coverage/miss": window / 10,
            "teacher/age_hours": 2.0 * window,
        }
        for window in range(5)
    }
    checkpoint.save(folder / "checkpoints" / "experts" / "home", tensors={}, state={"metrics": covered}, step=4)
    drifted = {"2": {"drift/mmd": 0.1, "drift/alarm": 0.0}, "3": {"drift/mmd": 0.4, "drift/alarm": 1.0}}
    checkpoint.save(folder / "checkpoints" / "foundation", tensors={}, state={"metrics": drifted}, step=4)
    return folder


def built(run: Path, *, untouched: bool = False) -> page.Page:
    surfaces = ["home", "mailer"]
    result = report.build(run, task="buy", spans=SPANS, surfaces=surfaces, untouched=untouched, replicates=50)
    return page.build(run, result, title="two <surfaces>", surfaces=surfaces, replicates=20)


@pytest.fixture(scope="module")
def made(run: Path) -> page.Page:
    return built(run)


@pytest.fixture(scope="module")
def html(made: page.Page) -> str:
    return made.to_html()


def test_it_holds_every_section_and_number(made: page.Page, html: str) -> None:
    read = Reader(html)
    text = " ".join(" ".join(read.text).split())
    for heading in (
        "What the foundation model is worth: early (windows 1 to 2, 2 present)",
        "What the foundation model is worth: late (windows 3 to 9, 2 present)",
        "Ladder of arms",
        "Window by window",
        "Calibration",
        "Time to parity",
        "Coverage and staleness",
        "Drift from snapshot to snapshot",
    ):
        assert heading in text
    assert read.tags.count("svg") == 4
    for table in made.report.spans:
        for row in table.rows:
            one = row.gains["treated", "control"]
            shown = f"[{one.lo:+.2f}, {one.hi:+.2f}] floor {one.noise_floor_pct:.2f}"
            assert f"{one.gain_pct:+.2f}" in text and shown in text  # never a gain without its floor
            assert f"{row.ne['control_matched']:.4f}" in text and f"{row.auc['treated']:.4f}" in text
    for row in made.report.spans[-1].rows:
        assert f"{row.calibration['treated']:.4f}" in text
    assert "mailer: no gain over the control" in text
    assert "80.0 % window 4: 60.0 %" in text  # fresh, mean and worst
    assert "20.0 % window 4: 40.0 %" in text  # missing
    assert "4.0 h window 4: 8.0 h" in text  # age
    assert "Alarm after windows 3." in text


def test_it_needs_nothing_else_and_runs_nothing(html: str) -> None:
    read = Reader(html)
    assert not {"script", "link", "iframe", "object", "embed", "img", "image", "base", "form"} & set(read.tags)
    loading = {"src", "srcset", "action", "data", "poster", "background"}
    assert not [name for name, _ in read.attributes if name in loading or name.startswith("on")]
    links = [value for name, value in read.attributes if name in ("href", "xlink:href")]
    assert all(value is not None and value.startswith("#") for value in links)
    assert not re.search(r"@import|url\((?!#)", html)
    assert "default-src 'none'" in dict(read.attributes).get("content", "") or "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html


def test_cohorts_are_told_apart_by_name(run: Path, tmp_path: Path, make_table) -> None:
    """Of every arm, where there are any; a run without cohorts says nothing of them."""
    assert "by cohort" not in built(run).to_html()
    table = make_table(seed=1)
    predictions.write(tmp_path, surface="home", window=1, table=table)
    members = {"user.income=high": np.arange(len(table)) % 3 == 0, HOSTILE: np.arange(len(table)) % 3 > 0}
    cohort.write(tmp_path, surface="home", window=1, members=members)
    made = built(tmp_path)
    text = " ".join(" ".join(Reader(made.to_html()).text).split())
    (each,) = made.report.spans
    assert [row.surface for row in each.cohorts] == ["home: user.income=high", f"home: {HOSTILE}"]
    for row in each.cohorts:
        for arm in ("treated", "control_matched"):
            one = row.gains.get((arm, "control"))
            assert one is None or f"{one.gain_pct:+.2f}" in text
        assert row.surface in text


def test_names_are_text_and_nothing_else(made: page.Page) -> None:
    rows = made.report.spans[0].rows[:1]
    hostile = page.Page(
        title=HOSTILE,
        report=report.Report(
            task=HOSTILE,
            untouched=False,
            spans=[
                report.SpanTable(
                    span=gain.Span(HOSTILE, 1, 2),
                    windows=2,
                    rows=[report.Row(**{**vars(row), "surface": HOSTILE}) for row in rows],
                    without_split_trips=[],
                    cohorts=[report.Row(**{**vars(row), "surface": HOSTILE}) for row in rows],
                    notes=[HOSTILE],
                )
            ],
        ),
        curves={HOSTILE: made.curves["home"]},
        parities=[type(each)(**{**vars(each), "surface": HOSTILE}) for each in made.parities[:1]],
        health=type(made.health)(coverage={HOSTILE: made.health.coverage["home"]}, drift={HOSTILE: {1: 0.5}}, age={}),
    )
    text = hostile.to_html()
    read = Reader(text)
    assert "script" not in read.tags
    assert sum(HOSTILE in each for each in read.text) >= 10
    assert "<script" not in text


@given(text=st.text("<>&/'\"$-; ab\né", max_size=20))
@settings(max_examples=40, deadline=None)
def test_any_text_comes_back_from_the_parts_as_it_was(text: str) -> None:
    cell = page_parts.Cell(text=text, small=[text])
    made = page_parts.table(text, [text], [page_parts.Line(name=text, cells=[cell])])
    read = Reader(made)
    assert set(read.tags) <= {"div", "table", "thead", "tbody", "tr", "th", "td", "small"}
    assert not text.strip() or "".join(read.text).count(text) >= 5


def test_the_same_run_gives_the_same_bytes(made: page.Page, html: str, tmp_path: Path) -> None:
    path = page.write(made, tmp_path / "sub" / "page.html")
    assert path.read_text(encoding="utf-8") == html


def test_of_a_run_without_predictions_it_says_so(tmp_path: Path) -> None:
    result = report.build(tmp_path, task="buy", spans=SPANS)
    text = page.build(tmp_path, result, title="empty", surfaces=["home"]).to_html()
    assert "No predictions of task &#x27;buy&#x27; in the reported windows yet." in text
    assert "svg" not in Reader(text).tags


def test_untouched_users_are_named(run: Path) -> None:
    shown = built(run, untouched=True)
    assert shown.report.untouched
    assert "The untouched fifth of the users" in shown.to_html()


def test_figures_take_the_colours_of_the_page(made: page.Page) -> None:
    svg = figures.to_svg(figures.entropy_over_windows({HOSTILE: made.curves["home"]}))
    assert svg == figures.to_svg(figures.entropy_over_windows({HOSTILE: made.curves["home"]}))
    root = ElementTree.fromstring(svg)
    assert root.get("fill") == "currentColor"
    assert "#000000" not in svg and "#ffffff" not in svg.lower().replace("fill: #ffffff; opacity: 0", "")
    assert HOSTILE in {text for each in root.iter() if (text := (each.text or "").strip())}


def test_the_ladder_has_every_arm_of_every_surface(made: page.Page) -> None:
    drawn = figures.ladder(made.report.spans[0].rows)
    home, mailer, pooled = drawn.axes
    assert [label.get_text() for label in home.get_yticklabels()] == [
        "matched control",
        "FM's own head",
        "treated (TAE + logit residual)",
        "TAE",
        "logit residual",
    ]
    points = {each.get_title(): sum(line.get_label() == "gain" for line in each.lines) for each in drawn.axes}
    assert points == {"home": 5, "mailer": 3, gain.POOLED: 3}
    assert home.get_ylim()[0] > home.get_ylim()[1]  # the first on top
    assert mailer.patches and pooled.patches  # the noise floor
