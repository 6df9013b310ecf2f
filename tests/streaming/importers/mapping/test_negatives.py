import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.importers.mapping.negatives import DRAWN, POSITIVE, Candidates, Engaged, Negatives, Positives
from streaming.importers.mapping.pools import Pool

USERS, ITEMS, SURFACES, HOURS = 4, 12, 2, 10
WINDOWS = 3
Row = tuple[int, int, int, int]  # user, time, item, surface

items = st.sampled_from([*range(ITEMS - 2), 2**62 + 5, 10**17])  # codes are any numbers
rows = st.tuples(st.integers(0, USERS - 1), st.integers(0, HOURS * WINDOWS - 1), items, st.integers(0, 1))
logs = st.lists(rows, max_size=60)
configs = st.builds(
    Negatives.Config,
    per_positive=st.integers(1, 5),
    source=st.sampled_from(["surface_catalogue", "popularity"]),
    exclude_seen=st.booleans(),
)


def windows(log: list[Row]) -> list[Positives]:
    """One request for each (user, time), with an id that says which; a window lasts HOURS."""
    made = []
    for window in range(WINDOWS):
        inside = sorted((user, time, item, surface) for user, time, item, surface in log if time // HOURS == window)
        request = sorted({(user, time) for user, time, _, _ in inside})
        made.append(
            Positives(
                request_id=np.array([1000 * user + time for user, time in request], np.int64),
                user=np.array([user for user, _ in request], np.int64),
                time=np.array([time for _, time in request], np.int64),
                offsets=np.cumsum([0, *(sum(row[:2] == key for row in inside) for key in request)], dtype=np.int64),
                item=np.array([item for _, _, item, _ in inside], np.int64),
                surface=np.array([surface for _, _, _, surface in inside], np.int64),
            )
        )
    return made


def draw(config: Negatives.Config, log: list[Row], *, seed: int = 7) -> list[tuple[Positives, Candidates]]:
    negatives = config.build(seed=seed, surfaces=SURFACES)
    return [(positives, negatives.window(positives)) for positives in windows(log)]


def by_request(drawn: list[tuple[Positives, Candidates]]) -> dict[int, list[tuple[int, int, bool, float]]]:
    """Item, surface, whether positive, and weight of each candidate, by request id."""
    found = {}
    for positives, candidates in drawn:
        for index, request in enumerate(positives.request_id.tolist()):
            part = slice(candidates.offsets[index], candidates.offsets[index + 1])
            columns = (candidates.item, candidates.surface, candidates.row >= 0, candidates.weight)
            found[request] = list(zip(*(column[part].tolist() for column in columns), strict=True))
    return found


def pool(config: Negatives.Config, log: list[Row], user: int, time: int, surface: int) -> set[int]:
    """What the definition says: shown there strictly before, new to the user if asked for."""
    shown = {item for _, when, item, where in log if where == surface and when < time}
    known = {item for who, when, item, _ in log if who == user and when < time}
    return shown - known if config.exclude_seen else shown


@settings(max_examples=50, deadline=None)
@given(configs, logs)
def test_candidates_come_from_one_pool_of_the_past_and_weigh_as_much(config: Negatives.Config, log: list[Row]) -> None:
    found = by_request(draw(config, log))
    assert set(found) == {1000 * user + time for user, time, _, _ in log}
    for request, candidates in found.items():
        user, time = divmod(request, 1000)
        positive = {(item, surface) for who, when, item, surface in log if (who, when) == (user, time)}
        items = {item for item, _ in positive}
        for surface in range(SURFACES):
            offered = pool(config, log, user, time, surface)
            taken = {item for item, where in positive if where == surface} & offered
            here = [(item, good, weight) for item, where, good, weight in candidates if where == surface]
            assert len({item for item, _, _ in here}) == len(here)
            assert {item for item, good, _ in here if good} == taken
            others = {item for item, good, _ in here if not good}
            # On another surface of the same request it was taken: it is nobody's negative.
            free = offered - items
            assert others <= free
            assert len(others) == (min(config.per_positive * len(taken), len(free)) if taken else 0)
            assert all(weight == 1 for _, good, weight in here if good)
            assert sum(weight for _, _, weight in here) == pytest.approx(len(free) + len(taken) if taken else 0)


@settings(max_examples=50, deadline=None)
@given(configs, logs, logs, st.integers(0, HOURS * WINDOWS))
def test_the_future_changes_nothing(config: Negatives.Config, log: list[Row], other: list[Row], now: int) -> None:
    past = [row for row in log if row[1] < now]
    before = by_request(draw(config, log))
    after = by_request(draw(config, past + [row for row in other if row[1] >= now]))
    for user, time, _, _ in past:
        assert before[1000 * user + time] == after[1000 * user + time]


@settings(max_examples=50, deadline=None)
@given(configs, logs)
def test_draws_do_not_depend_on_which_requests_are_asked_for(config: Negatives.Config, log: list[Row]) -> None:
    whole, alone = by_request(draw(config, log)), config.build(seed=7, surfaces=SURFACES)
    found = {}
    for positives in windows(log):
        kept = positives.user == 0
        inside = np.repeat(kept, np.diff(positives.offsets))
        when = np.repeat(positives.time, np.diff(positives.offsets))
        who = np.repeat(positives.user, np.diff(positives.offsets))
        mine = Positives(
            request_id=positives.request_id[kept],
            user=positives.user[kept],
            time=positives.time[kept],
            offsets=np.append(0, np.cumsum(np.diff(positives.offsets)[kept])),
            item=positives.item[inside],
            surface=positives.surface[inside],
        )
        others = Engaged(
            user=who[~inside], time=when[~inside], item=positives.item[~inside], surface=positives.surface[~inside]
        )
        found |= by_request([(mine, alone.window(mine, others))])
    if config.source == "surface_catalogue":  # what others took counts towards popularity only as a positive
        assert found == {request: rows for request, rows in whole.items() if request < 1000}
    else:
        first = [request for request in found if request % 1000 < HOURS]
        assert {request: found[request] for request in first} == {request: whole[request] for request in first}


@settings(max_examples=50, deadline=None)
@given(configs, logs)
def test_the_same_seed_draws_the_same_and_another_one_something_else(config: Negatives.Config, log: list[Row]) -> None:
    assert by_request(draw(config, log)) == by_request(draw(config, list(reversed(log))))


def test_another_seed_draws_other_items() -> None:
    config = Negatives.Config(per_positive=3)
    log = [(0, item % HOURS, item, 0) for item in range(ITEMS)] + [(1, 25, item, 0) for item in range(2)]
    drawn = {tuple(sorted(by_request(draw(config, log, seed=seed))[1025])) for seed in range(20)}
    assert len(drawn) > 10


def test_a_positive_that_is_new_to_the_surface_is_no_candidate_and_is_counted() -> None:
    log = [(0, 1, 5, 0), (0, 2, 5, 0), (1, 3, 5, 1), (1, 3, 5, 0)]
    _, candidates = draw(Negatives.Config(per_positive=2), log)[0]
    # Item 5 was shown on surface 0 at time 1 for the first time, and on surface 1 at time 3.
    assert candidates.offsets.tolist() == [0, 0, 1, 2]
    assert candidates.item.tolist() == [5, 5]
    assert candidates.surface.tolist() == [0, 0]
    assert candidates.outside == 2
    assert candidates.stratum.tolist() == [POSITIVE, POSITIVE]


def test_what_the_user_knows_is_neither_drawn_nor_a_candidate() -> None:
    log = [(user, user, item, 0) for user in range(3) for item in range(ITEMS)] + [(3, 12, 0, 0), (3, 13, 0, 0)]
    log += [(3, 14, 1, 0)]
    new = Negatives.Config(per_positive=ITEMS, exclude_seen=True)
    found = by_request(draw(new, log))
    assert {item for item, *_ in found[3012]} == set(range(ITEMS))
    assert found[3013] == []
    assert {item for item, *_ in found[3014]} == set(range(1, ITEMS))
    assert {item for item, *_ in by_request(draw(replace_seen(new), log))[3013]} == set(range(ITEMS))


def replace_seen(config: Negatives.Config) -> Negatives.Config:
    return config.model_copy(update={"exclude_seen": False})


def test_engagements_beside_the_requests_fill_the_catalogue_but_are_strictly_earlier_too() -> None:
    empty = windows([])[0]
    at = np.array([0])
    one = Positives(request_id=at, user=at, time=at + 5, offsets=np.array([0, 1]), item=at + 3, surface=at)
    beside = Engaged(
        user=np.array([1, 1, 1]), time=np.array([4, 4, 5]), item=np.array([3, 4, 6]), surface=np.array([0, 0, 0])
    )
    candidates = Negatives.Config(per_positive=9).build(seed=0, surfaces=1).window(one, beside)
    assert sorted(candidates.item.tolist()) == [3, 4]
    assert candidates.stratum[np.argsort(candidates.item)].tolist() == [POSITIVE, DRAWN]
    assert len(Negatives.Config(per_positive=9).build(seed=0, surfaces=1).window(empty).item) == 0


def test_what_a_request_shows_later_than_its_time_is_on_offer_from_then_on_only() -> None:
    """The first request's second item was shown at time 8, after the second request's time."""
    requests = Positives(
        request_id=np.array([1, 2, 3]),
        user=np.array([0, 1, 2]),
        time=np.array([5, 7, 9]),
        offsets=np.array([0, 2, 3, 4]),
        item=np.array([1, 2, 1, 1]),
        surface=np.zeros(4, np.int64),
        row_time=np.array([5, 8, 7, 9]),
    )
    candidates = Negatives.Config(per_positive=9).build(seed=0, surfaces=1).window(requests)
    assert candidates.offsets.tolist() == [0, 0, 1, 3]
    assert sorted(candidates.item[1:].tolist()) == [1, 2]


def test_popularity_counts_windows_before_and_no_other() -> None:
    """Item 0 is taken 300 times in the first window, item 1 as often in the second, before the request that counts."""
    everything = [(0, 0, item, 0) for item in range(ITEMS)]
    first = [(user, 1 + hour % 8, 0, 0) for user in range(USERS) for hour in range(300)]
    config = Negatives.Config(per_positive=1, source="popularity")
    later = [(user, 11 + hour % 6, 1, 0) for user in range(USERS) for hour in range(300)]
    drawn = [0, 0]
    for seed in range(60):
        for request, candidates in by_request(draw(config, [*everything, *first, *later], seed=seed)).items():
            if 17 > request % 1000 > 10:
                drawn[0] += sum(item == 0 for item, _, good, _ in candidates if not good)
                drawn[1] += sum(item > 1 for item, _, good, _ in candidates if not good)
    assert drawn[0] > 20 * drawn[1] > 0


def test_windows_out_of_order_are_refused() -> None:
    first, second, _ = windows([(0, 1, 1, 0), (0, 11, 1, 0)])
    negatives = Negatives.Config(per_positive=1).build(seed=0, surfaces=SURFACES)
    negatives.window(second)
    with pytest.raises(ValueError, match="order of time"):
        negatives.window(first)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.sets(st.integers(0, 9), max_size=4), st.integers(0, 2**32))
def test_weighted_sums_estimate_the_pool(draws: int, taken: set[int], seed: int) -> None:
    """A weighted sample counts any part of the pool rightly on average, however uneven the draws."""
    rate = np.array([1.0, 1, 1, 50, 1, 1, 9, 2, 1, 3, 1, 100])
    others = np.array(sorted(taken), np.int64)
    random = np.random.default_rng(seed)
    free = len(rate) - len(others)
    total = np.zeros(len(rate))
    for _ in range(400):
        position, weight = Pool(rate=rate).draw(random, size=len(rate), taken=others, draws=draws)
        assert len(position) == min(draws, free)
        assert weight.sum() == pytest.approx(free)
        total[position] += weight
    assert np.all(total[others] == 0)
    if draws >= free:
        assert np.allclose(total[np.setdiff1d(np.arange(len(rate)), others)], 400)


@pytest.mark.parametrize("rate", [np.ones(40), np.arange(1.0, 41)])
def test_draws_follow_the_rates_without_replacement(rate: np.ndarray) -> None:
    """Against the plain definition: the first arrivals of independent exponential times. Enough of them for ratios."""
    random, plain = np.random.default_rng(1), np.random.default_rng(2)
    pool, taken, runs = Pool(rate=rate), np.array([0, 39]), 2000
    drawn, expected, weighted = np.zeros(40), np.zeros(40), np.zeros(40)
    for _ in range(runs):
        position, weight = pool.draw(random, size=40, taken=taken, draws=20)
        drawn[position] += 1
        weighted[position] += weight
        race = plain.standard_exponential(40) / rate
        race[taken] = np.inf
        expected[np.argsort(race)[:20]] += 1
    assert np.abs(drawn - expected).max() < 6 * np.sqrt(expected.max())
    halves = weighted[1:20].sum() / runs, weighted[20:39].sum() / runs
    assert halves == pytest.approx((19, 19), rel=0.05)


def test_few_arrivals_are_made_up_for_from_the_rest() -> None:
    """One item takes nearly all arrivals; the others must still come, in fair shares."""
    rate = np.append(np.ones(50), 1e9)
    counts = np.zeros(51)
    random = np.random.default_rng(3)
    for _ in range(600):
        position, _ = Pool(rate=rate).draw(random, size=51, taken=np.zeros(0, np.int64), draws=5)
        counts[position] += 1
    assert counts[50] == 600
    assert np.abs(counts[:50] - 48).max() < 40


def test_a_file_says_from() -> None:
    config = Negatives.Config.model_validate({"per_positive": 2, "from": "popularity"})
    assert config.source == "popularity"
    with pytest.raises(ValueError, match="per_positive"):
        Negatives.Config.model_validate({"per_positive": 0})


def test_repeated_rows_of_a_request_are_one_candidate() -> None:
    log = [(0, 1, 5, 0), (1, 3, 5, 0), (1, 3, 5, 0)]
    _, candidates = draw(Negatives.Config(per_positive=1), log)[0]
    assert candidates.item.tolist() == [5]
    assert candidates.outside == 2
