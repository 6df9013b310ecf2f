from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from transfer import gain, parity, predictions
from transfer.gain import Gain

ONE = Gain(
    surface="home",
    span="windows 1 to 4",
    arm="treated",
    against="control",
    ne_control=0.8,
    ne_arm=0.7,
    gain_pct=1.0,
    lo=-1.0,
    hi=3.0,
    noise_floor_pct=None,
    users=10,
    rows=100,
    seeds=1,
)


@given(ahead=st.lists(st.booleans(), min_size=1, max_size=12))
def test_the_control_is_level_from_the_block_after_the_last_that_is_clear_of_zero(ahead: list[bool]) -> None:
    gains = {1 + 4 * block: replace(ONE, lo=0.5 if each else -0.5) for block, each in enumerate(ahead)}
    expected = next((first for first in gains if all(gains[later].lo <= 0 for later in gains if later >= first)), None)
    assert parity.level_from(gains) == expected


def test_a_head_start_that_is_used_up(tmp_path: Path, make_table) -> None:
    for window in range(1, 13):
        # Ahead for two blocks of four windows, then as good as the control.
        noise = {"control": 1.0, "treated": 0.2 if window <= 8 else 1.0}
        predictions.write(tmp_path, surface="home", window=window, table=make_table(seed=window, noise=noise))
        always = {"control": 1.0, "treated": 0.2}
        predictions.write(tmp_path, surface="mailer", window=window, table=make_table(seed=window, noise=always))
    home, mailer, pooled = parity.parities(tmp_path, task="buy", replicates=200)
    assert (home.surface, home.first, home.last, home.reached, home.windows) == ("home", 1, 12, 9, 8)
    assert home.final.span == "windows 9 to 12" and home.final.lo <= 0
    assert (mailer.reached, mailer.windows) == (None, None)
    assert mailer.final.lo > 0
    assert pooled.surface == gain.POOLED


def test_the_last_block_takes_what_is_left(tmp_path: Path, make_table) -> None:
    for window in range(3, 12):
        predictions.write(tmp_path, surface="home", window=window, table=make_table(seed=window, requests=60))
    (home,) = parity.parities(tmp_path, task="buy", replicates=50)
    assert (home.first, home.last, home.final.span) == (3, 11, "windows 7 to 11")


def test_nothing_to_judge(tmp_path: Path, make_table) -> None:
    assert parity.parities(tmp_path, task="buy") == []
    predictions.write(tmp_path, surface="home", window=1, table=make_table(noise={"control": 1.0}))
    assert parity.parities(tmp_path, task="buy") == []


def test_a_surface_is_counted_from_where_it_begins(tmp_path: Path, make_table) -> None:
    for window in range(1, 13):
        ahead, level = {"control": 1.0, "treated": 0.2}, {"control": 1.0, "treated": 1.0}
        predictions.write(tmp_path, surface="old", window=window, table=make_table(seed=window, noise=ahead))
        table = make_table(seed=window, noise=level)
        predictions.write(tmp_path, surface="new", window=window, table=table if window > 4 else table.slice(0, 0))
    new = next(each for each in parity.parities(tmp_path, task="buy", replicates=200) if each.surface == "new")
    assert (new.first, new.reached, new.windows) == (5, 5, 0)


def test_a_surface_that_ends_is_judged_to_its_end(tmp_path: Path, make_table) -> None:
    for window in range(1, 13):
        predictions.write(tmp_path, surface="on", window=window, table=make_table(seed=window))
        if window <= 8:
            predictions.write(tmp_path, surface="over", window=window, table=make_table(seed=window))
    over = next(each for each in parity.parities(tmp_path, task="buy", replicates=50) if each.surface == "over")
    assert (over.first, over.last, over.final.span) == (1, 8, "windows 5 to 8")
