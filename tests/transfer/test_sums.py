from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import DataError
from transfer import predictions, sums
from transfer.evaluate import evaluate
from transfer.predictions import Column

FIELDS = ("user", "tagged", "rows", "positives", "weight", "weight_positives", "loss", "weight_loss", "predicted")


def assert_equal(one: sums.UserSums, other: sums.UserSums) -> None:
    assert one.columns == other.columns
    for name in FIELDS:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, err_msg=name)
    np.testing.assert_array_equal(one.histogram, other.histogram)


def test_metrics_agree_with_the_rows(make_table) -> None:
    table = make_table(unknown=0.3)
    summed, direct = sums.accumulate(table, task="buy").metrics(), evaluate(table, task="buy")
    assert list(summed) == list(direct)
    for column, values in summed.items():
        for name in ("ne", "ne_pop", "calibration", "rows"):
            assert values[name] == pytest.approx(direct[column][name]), name
        assert values["auc"] == pytest.approx(direct[column]["auc"], abs=2e-3)


@given(cut=st.integers(0, 300), seed=st.integers(0, 5))
def test_parts_add_up_to_the_whole(make_table, cut: int, seed: int) -> None:
    table = make_table(seed=seed, requests=60, users=12)
    cut = min(cut, len(table))
    parts = [sums.accumulate(each, task="buy") for each in (table.slice(0, cut), table.slice(cut))]
    assert_equal(sums.combine(parts), sums.accumulate(table, task="buy"))


def test_the_order_of_rows_does_not_matter(make_table) -> None:
    table = make_table()
    shuffled = table.take(np.random.default_rng(1).permutation(len(table)))
    assert_equal(sums.accumulate(shuffled, task="buy"), sums.accumulate(table, task="buy"))


def test_select_equals_filtering_rows(make_table) -> None:
    table = make_table()
    untouched = sums.is_untouched(table.column("user_id").to_numpy())
    tagged = table.column("tag_split_trip").to_numpy()
    whole = sums.accumulate(table, task="buy")
    kept = sums.accumulate(table.filter(pa.array(~untouched & ~tagged)), task="buy")
    assert 0 < len(kept.user) < len(whole.user)
    assert_equal(whole.select(untouched=False, tagged=False), kept)


def test_combine_keeps_the_columns_that_all_have(make_table) -> None:
    full = sums.accumulate(make_table(), task="buy")
    less = sums.accumulate(make_table(noise={"treated": 0.3, "control": 1.0}), task="buy")
    assert sums.combine([full, less]).columns == (
        Column("buy", "control", 0),
        Column("buy", "control", 1),
        Column("buy", "treated", 0),
        Column("buy", "treated", 1),
    )


def test_no_known_label_gives_empty_sums(make_table) -> None:
    empty = sums.accumulate(make_table(unknown=1.0), task="buy")
    assert len(empty.user) == 0
    full = sums.accumulate(make_table(), task="buy")
    assert_equal(sums.combine([full, empty]), full)
    assert all(np.isnan(values["ne"]) for values in empty.metrics().values())


def splitmix64(value: int) -> int:
    """The first output of SplitMix64 with the seed ``value``, in Python's integers."""
    mask = 2**64 - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def test_untouched_users_are_a_stable_fifth() -> None:
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # as published
    chosen = sums.is_untouched(np.arange(100_000))
    assert chosen.mean() == pytest.approx(0.2, abs=0.005)
    users = np.array([-1, -(2**63), 2**63 - 1, *range(50)])
    # Changing the hash would let development look at users that were left out before.
    assert sums.is_untouched(users).tolist() == [splitmix64(int(user) % 2**64) % 5 == 0 for user in users]


def test_kept_until_the_predictions_change(tmp_path: Path, make_table, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions.write(tmp_path, surface="home", window=1, table=make_table(seed=1))
    first = sums.of_window(tmp_path, surface="home", window=1, task="buy")
    assert_equal(first, sums.accumulate(make_table(seed=1), task="buy"))
    with monkeypatch.context() as patch:
        patch.setattr(predictions, "read", None)  # a second look must not read the table again
        assert_equal(sums.of_window(tmp_path, surface="home", window=1, task="buy"), first)
    predictions.write(tmp_path, surface="home", window=1, table=make_table(seed=2))
    second = sums.of_window(tmp_path, surface="home", window=1, task="buy")
    assert_equal(second, sums.accumulate(make_table(seed=2), task="buy"))


def replace_first(table: pa.Table, name: str, value: float) -> pa.Table:
    values = table.column(name).to_numpy().copy()
    values[3] = value
    return table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.5])
def test_refuses_what_is_no_probability(make_table, value: float) -> None:
    with pytest.raises(DataError, match=r"p_buy\.tae\.seed1', row 3"):
        sums.accumulate(replace_first(make_table(), "p_buy.tae.seed1", value), task="buy")


def test_refuses_other_labels_and_tasks(make_table) -> None:
    with pytest.raises(DataError, match="0, 1 or null"):
        sums.accumulate(replace_first(make_table(), "label_buy", 0.5), task="buy")
    with pytest.raises(DataError, match=r"no task 'click'\. Tasks there: buy"):
        sums.accumulate(make_table(), task="click")
