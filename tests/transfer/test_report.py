import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from transfer import cohort, gain, predictions, report, sums

SPANS = (gain.Span("early", 1, 2), gain.Span("late", 5, 9))
COMPLETE_JOURNEY = ("storefront", "endcap", "aisle", "mailer_interior", "mailer_front", "mailer_back_wrap")


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
    assert "| n/a |" in text
    assert gain.POOLED not in text  # one surface: nothing to pool


def test_an_arm_that_missed_a_window_is_left_out_and_named(tmp_path: Path, make_table) -> None:
    predictions.write(tmp_path, surface="home", window=1, table=make_table(noise={"control": 1.0, "tae": 0.5}))
    predictions.write(tmp_path, surface="home", window=2, table=make_table())
    (table,) = report.build(tmp_path, task="buy", spans=SPANS).spans
    assert set(table.rows[0].ne) == {"control", "tae"}
    assert any("treated seed 0 left out: it predicted only 1 of the 2 windows" in note for note in table.notes)


@pytest.mark.parametrize("width", [40, 80, 160])
def test_renders_everywhere(run: Path, width: int) -> None:
    result = report.build(run, task="buy", spans=SPANS)
    lines = _rendered(result, width)
    assert any(line.startswith("mailer") for line in lines)
    assert "…" not in "".join(lines)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["spans"]["early"]["surfaces"]["home"]
    rows = [line for line in result.to_markdown().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {12, 5}  # the main tables, and the ladder


def test_80_columns_show_every_value_on_one_line(tmp_path: Path, make_table) -> None:
    for seed, name in enumerate(COMPLETE_JOURNEY):
        for window in (1, 5):
            predictions.write(tmp_path, surface=name, window=window, table=make_table(seed=seed + window, requests=80))
    result = report.build(tmp_path, task="buy", spans=SPANS, surfaces=COMPLETE_JOURNEY, replicates=50)
    lines = _rendered(result, 80)
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= 80
    assert len(result.spans) == 2
    for table in result.spans:
        assert [row.surface for row in table.rows] == [*COMPLETE_JOURNEY, gain.POOLED]
        for row in table.rows:
            shown = [_squeezed(line.removeprefix(row.surface)) for line in lines if line.startswith(f"{row.surface} ")]
            control, matched = (_shown(row.gains["treated", against]) for against in ("control", "control_matched"))
            residual, tae = (_shown(row.gains[arm, "control"]) for arm in ("logit_residual", "tae"))
            levels = [row.ne[arm] for arm in ("control", "control_matched", "treated", "fm_head")]
            assert " ".join(f"{value:.4f}" for value in [*levels, row.auc["treated"]]) in shown
            assert f"{control} {matched} {row.noise_floor_pct:.2f}" in shown
            assert f"{residual} {tae} {row.noise_floor_pct:.2f}" in shown
        for row in table.without_split_trips:
            shown = [_squeezed(line.removeprefix(row.surface)) for line in lines if line.startswith(f"{row.surface} ")]
            assert f"{_shown(row.gains['treated', 'control'])} {row.noise_floor_pct:.2f}" in shown


def test_a_diverged_arm_still_fits_80_columns(tmp_path: Path, make_table) -> None:
    table = make_table(noise={"control": 0.1, "control_matched": 0.1, "treated": 30.0})
    predictions.write(tmp_path, surface="mailer_back_wrap", window=1, table=table)
    result = report.build(tmp_path, task="buy", spans=SPANS, replicates=50)
    one = result.spans[0].rows[0].gains["treated", "control"]
    assert one.gain_pct < -1000
    (line,) = (line for line in _rendered(result, 80) if line.startswith("mailer_back_wrap") and line.count("▼") == 2)
    assert f"{one.gain_pct:.0f} ▼   [{one.lo:.0f}, {one.hi:.0f}]" in line


def test_long_surface_names_are_folded_not_cut(tmp_path: Path, make_table) -> None:
    name = "recommendations_below_the_" + "very_" * 12 + "long_page"
    predictions.write(tmp_path, surface=name, window=1, table=make_table())
    lines = _rendered(report.build(tmp_path, task="buy", spans=SPANS, replicates=50), 80)
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= 80
    assert "".join(line.split(" ")[0] for line in lines).count(name) == 4  # the tables of a span


def test_gains_by_cohort(tmp_path: Path, make_table) -> None:
    """Of the windows that know of a cohort, the untouched users apart, in every form that the report has."""
    noise = {"control": 1.0, "c2al": 0.3, "treated": 1.0}
    tables = {window: make_table(seed=window, noise=noise) for window in (1, 2)}
    for window, table in tables.items():
        predictions.write(tmp_path, surface="home", window=window, table=table)
    assert report.build(tmp_path, task="buy", spans=SPANS, replicates=50).spans[0].cohorts == []
    few = np.arange(len(tables[2])) % 4 == 0
    cohort.write(tmp_path, surface="home", window=2, members={"item.kind=a|b": few, "item.kind=c": ~few})
    result = report.build(tmp_path, task="buy", spans=SPANS, replicates=50)
    minority, majority = result.spans[0].cohorts
    shown = ~sums.is_untouched(tables[2].column("user_id").to_numpy())
    assert (minority.rows, majority.rows) == ((few & shown).sum(), (~few & shown).sum())
    one = minority.gains["c2al", "control"]
    assert one.gain_pct > 0 and one.rows == minority.rows
    line = f"| home: item.kind=a\\|b | {one.gain_pct:+.2f} "
    assert "By cohort:" in result.to_markdown() and line in result.to_markdown()
    assert f"{one.gain_pct:+.2f}" in "".join(each for each in _rendered(result, 80) if "a|b" in each)
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))["spans"]["early"]["cohorts"]
    assert told["home: item.kind=a|b"]["gains"]["c2al_vs_control"]["gain_pct"] == one.gain_pct


def test_before_the_first_window(tmp_path: Path) -> None:
    result = report.build(tmp_path, task="buy")
    assert result.spans == []
    assert "No predictions of task 'buy'" in result.to_markdown()


def _rendered(result: report.Report, width: int) -> list[str]:
    """Lines as a file or a pipe gets them."""
    file = io.StringIO()
    Console(width=width, file=file).print(result.to_rich())
    return [line.rstrip() for line in file.getvalue().splitlines()]


def _squeezed(line: str) -> str:
    return " ".join(line.replace("▲", "").replace("▼", "").replace("△", "").replace("▽", "").split())


def _shown(one: gain.Gain) -> str:
    return f"{one.gain_pct:+.2f} [{one.lo:+.2f}, {one.hi:+.2f}]"
