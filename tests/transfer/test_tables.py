"""Tables follow what a run has: the arms of the full configuration and every reference."""

import io

import pytest
from rich.console import Console

from transfer import gain, page_sections, predictions, report
from transfer.report import Report

FULL = {
    "control": 1.0,
    "control_matched": 0.95,
    "kd": 0.9,
    "aux_head": 0.85,
    "aux_head_adapter": 0.8,
    "user_embedding": 0.9,
    "tae_aux_head_adapter": 0.5,
    "treated": 0.3,
    "lightgbm": 0.7,
    "lightgbm_treated": 0.45,
    "fm_single_surface": 0.75,
    "blended": 0.4,
    "fm_head": 0.6,
}
ONCE = [f"p_buy.{arm}.seed1" for arm in ("lightgbm", "lightgbm_treated", "fm_single_surface", "blended")]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, make_table) -> Report:
    run = tmp_path_factory.mktemp("full")
    for seed, surface in enumerate(("home", "mailer")):
        table = make_table(seed=seed, noise=FULL, requests=150).drop_columns(ONCE)
        predictions.write(run, surface=surface, window=1, table=table)
    return report.build(run, task="buy", spans=[gain.Span("all", 1, 1)], replicates=50)


def printed(result: Report, width: int) -> list[str]:
    file = io.StringIO()
    Console(width=width, file=file).print(result.to_rich())
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_every_arm_stands_in_the_ladder_with_all_that_it_is_compared_with(full: Report) -> None:
    lines = printed(full, 120)
    assert max(map(len, lines)) <= 120
    pooled = full.spans[0].rows[-1]
    floor = f"{pooled.noise_floor_pct:.2f}"
    [start] = [n for n, line in enumerate(lines) if line.startswith("Ladder of arms, all surfaces")]
    assert lines[start].endswith(f"noise floor {floor}")
    assert lines[start + 1].split() == ["arm", "NE", "over", "control", "over", "matched", "over", "LightGBM"]
    for arm in FULL:
        [line] = [each for each in lines[start:] if each.split()[:1] == [arm]]
        assert f"{pooled.ne[arm]:.4f}" in line
        compared = [one for (name, _), one in pooled.gains.items() if name == arm]
        shown = [one for one in compared if one.against in ("control", "control_matched", "lightgbm")]
        assert arm == "control" or shown
        assert all(f"{one.gain_pct:+.2f}" in line and f"{one.lo:+.2f}, {one.hi:+.2f}]" in line for one in shown)
        assert f"| {arm} | {pooled.ne[arm]:.4f} |" in full.to_markdown()


def test_columns_without_a_value_are_left_out(full: Report) -> None:
    text = "\n".join(printed(full, 120))
    assert "treated over control" in text
    assert "TAE over control" not in text and "either half" not in text
    assert "TAE over control" not in full.to_markdown()


def test_the_page_has_them_too(full: Report) -> None:
    html = page_sections.ladder(full.spans[0])
    pooled, home = full.spans[0].rows[-1], full.spans[0].rows[0]
    for arm in FULL:
        assert f'<th scope="row">{arm}</th><td>{pooled.ne[arm]:.4f}</td>' in html
    for one in home.gains.values():
        if one.against in ("control", "control_matched", "lightgbm"):
            assert f"{one.gain_pct:+.2f}" in html
    assert pooled.eta and all(f"<td>{value:.2f}</td>" in html for value in pooled.eta.values())


def test_json_has_every_surface(full: Report) -> None:
    surfaces = full.to_dict()["spans"]["all"]["surfaces"]
    for surface in ("home", "mailer", gain.POOLED):
        keys = surfaces[surface]["gains"].keys()
        for pair in ("lightgbm_vs_control", "blended_vs_lightgbm", "fm_single_surface_vs_control", "kd_vs_control"):
            assert pair in keys
        assert surfaces[surface]["eta"].keys() == set(FULL) - {"control", "control_matched", *gain.TRAINED_ONCE}
