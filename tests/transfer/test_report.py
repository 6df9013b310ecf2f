import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from transfer import gain, predictions, report, sums

SPANS = (gain.Span("early", 1, 2), gain.Span("late", 5, 9))


@pytest.fixture
def run(tmp_path: Path, make_table) -> Path:
    even = {"control": 0.6, "control_matched": 0.6, "treated": 0.6, "fm_head": 0.6}
    for window in (1, 2, 3):
        predictions.write(tmp_path, surface="home", window=window, table=make_table(seed=window))
        predictions.write(tmp_path, surface="mailer", window=window, table=make_table(seed=window + 50, noise=even))
    return tmp_path


def test_rows_per_surface_and_pooled(run: Path) -> None:
    result = report.build(run, task="buy", spans=SPANS)
    (table,) = result.spans  # nothing in the late windows yet
    assert (table.span.name, table.windows) == ("early", 2)
    assert [row.surface for row in table.rows] == ["home", "mailer", gain.POOLED]
    home, mailer, pooled = table.rows
    assert home.gains["treated", "control"].verdict == "better"
    assert mailer.gains["treated", "control"].verdict == "none"
    assert pooled.rows == home.rows + mailer.rows
    assert set(home.ne) == {"control", "control_matched", "tae", "logit_residual", "treated", "fm_head"}
    assert home.auc["treated"] > home.auc["control"]
    assert 0 < table.without_split_trips[0].rows < home.rows


def test_untouched_users_are_apart(run: Path) -> None:
    shown = report.build(run, task="buy", spans=SPANS).spans[0].rows[0]
    hidden = report.build(run, task="buy", spans=SPANS, untouched=True).spans[0].rows[0]
    users = {
        user
        for window in (1, 2)
        for user in predictions.read(run, surface="home", window=window).column("user_id").to_pylist()
    }
    assert shown.users + hidden.users == len(users)
    assert hidden.users == sum(sums.is_untouched(user) for user in users)


def test_says_plainly_where_there_is_no_gain(run: Path) -> None:
    result = report.build(run, task="buy", spans=SPANS)
    notes = "\n".join(result.spans[0].notes)
    assert "mailer: no gain over the control" in notes
    assert "home" not in notes
    assert "- mailer: no gain over the control" in result.to_markdown()


def test_says_where_the_treated_arm_is_worse(tmp_path: Path, make_table) -> None:
    table = make_table(noise={"control": 0.1, "treated": 1.5})
    predictions.write(tmp_path, surface="home", window=1, table=table)
    (table,) = report.build(tmp_path, task="buy", spans=SPANS).spans
    assert any("home: the treated arm is WORSE than the control" in note for note in table.notes)


def test_one_seed_has_no_noise_floor(tmp_path: Path, make_table) -> None:
    predictions.write(tmp_path, surface="home", window=1, table=make_table(seeds=1))
    text = report.build(tmp_path, task="buy", spans=SPANS).to_markdown()
    assert "n/a (one seed)" in text
    assert gain.POOLED not in text  # one surface: nothing to pool


def test_an_arm_that_missed_a_window_is_left_out_and_named(tmp_path: Path, make_table) -> None:
    predictions.write(tmp_path, surface="home", window=1, table=make_table(noise={"control": 1.0, "tae": 0.5}))
    predictions.write(tmp_path, surface="home", window=2, table=make_table())
    (table,) = report.build(tmp_path, task="buy", spans=SPANS).spans
    assert set(table.rows[0].ne) == {"control", "tae"}
    assert any("treated seed 0 left out: it predicted only 1 of the 2 windows" in note for note in table.notes)


@pytest.mark.parametrize("width", [80, 120, 160])
def test_renders_everywhere(run: Path, width: int) -> None:
    result = report.build(run, task="buy", spans=SPANS)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(result.to_rich())
    assert "mailer" in console.export_text()
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["spans"]["early"]["surfaces"]["home"]
    rows = [line for line in result.to_markdown().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {12}


def test_before_the_first_window(tmp_path: Path) -> None:
    result = report.build(tmp_path, task="buy")
    assert result.spans == []
    assert "No predictions of task 'buy'" in result.to_markdown()
