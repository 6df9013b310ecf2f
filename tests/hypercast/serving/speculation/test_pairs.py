"""Pairs and what is known of each are what a plain loop over the past says, and nothing of what comes later."""

import math

import numpy as np
import pytest

from hypercast.serving.speculation.asked_log import AskedReader
from hypercast.serving.speculation.pairs import LONG, SHORT, PairSource
from streaming.errors import ConfigError
from streaming.features import DAY
from streaming.workspace import Workspace

CONFIG = PairSource.Config(lookback=14, popular=5, place="store", attributes=["category"])


@pytest.fixture(scope="module")
def noon(workspace: Workspace) -> int:
    """In the midst of the fourth window."""
    return workspace.dataset.window(4).start + 3 * DAY


def events(workspace: Workspace, noon: int) -> list[tuple[int, int, int]]:
    """User, item and time of each engagement within the lookback."""
    tables = [workspace.dataset.engagements(window.index) for window in workspace.dataset.windows]
    rows = [row for table in tables for row in table.to_pylist()]
    found = [(row["user_id"], row["item_id"], round(row["time"].timestamp() * 1e6)) for row in rows]
    return [event for event in found if noon - 14 * DAY <= event[2] < noon]


def test_every_statistic_is_that_of_a_loop(workspace: Workspace, noon: int) -> None:
    source = CONFIG.build(workspace)
    pairs, asked = source.at(noon), source.asked(noon)
    users, stores = asked.user_id[asked.owner].tolist(), asked.context[asked.owner, 0].tolist()
    rows = list(
        zip(
            users, asked.item_id.tolist(), asked.surface.tolist(), asked.time[asked.owner].tolist(), stores, strict=True
        )
    )
    engaged = events(workspace, noon)
    category = dict(zip(workspace.items.ids.tolist(), workspace.items.code[:-1, 1].tolist(), strict=True))
    requests = list(zip(asked.user_id.tolist(), asked.time.tolist(), asked.context[:, 0].tolist(), strict=True))

    def total(times: list[int], scale: int = LONG) -> float:
        return sum(math.exp((time - noon) / scale) for time in times)

    columns = dict(zip(source.names, pairs.feature.T, strict=True))
    chosen = np.random.default_rng(0).choice(len(pairs), 40, replace=False)
    for index in chosen.tolist():
        user, item, surface = (int(part[index]) for part in (pairs.user_id, pairs.item_id, pairs.surface))
        own = [time for who, time, _ in requests if who == user]
        place = [where for who, _, where in requests if who == user][-1]
        shown = [time for _, what, where, time, _ in rows if (what, where) == (item, surface)]
        placed = [time for _, what, where, time, store in rows if (what, where, store) == (item, surface, place)]
        expected = {
            "user_asks": total(own),
            "user_asks_recent": total(own, SHORT),
            "user_recency": math.exp((max(own) - noon) / SHORT),
            "user_surface_asks": total([time for who, _, where, time, _ in rows if (who, where) == (user, surface)]),
            "shown": total(shown),
            "shown_recent": total(shown, SHORT),
            "place_shown": total(placed),
            "place_shown_recent": total(placed, SHORT),
            "user_item_asks": total([time for who, what, _, time, _ in rows if (who, what) == (user, item)]),
            "user_item_engaged": total([time for who, what, time in engaged if (who, what) == (user, item)]),
            "item_engaged": total([time for _, what, time in engaged if what == item]),
            "user_category_engaged": total(
                [time for who, what, time in engaged if who == user and category[what] == category[item]]
            ),
        }
        assert list(expected) == source.names
        for name, value in expected.items():
            assert columns[name][index] == pytest.approx(math.log(value + 0.05), abs=1e-5), name


def test_pairs_are_own_and_popular_ones(workspace: Workspace, noon: int) -> None:
    source = CONFIG.build(workspace)
    pairs, asked = source.at(noon), source.asked(noon)
    codes = list(zip(pairs.user_id.tolist(), pairs.item.tolist(), pairs.surface.tolist(), strict=True))
    assert codes == sorted(set(codes))
    own = set(zip(asked.user_id[asked.owner].tolist(), asked.item.tolist(), asked.surface.tolist(), strict=True))
    assert own <= set(codes)
    shown = {code[1:] for code in own}
    assert {code[1:] for code in codes} <= shown
    items = {(user, item) for user, item, _ in own} | {
        (user, int(workspace.items.rows(np.array([item]))[0])) for user, item, _ in events(workspace, noon)
    }
    others = [code for code in codes if code[:2] not in items]
    users = len({code[0] for code in codes})
    assert 0 < len(others) <= 2 * 5 * users  # what is popular everywhere, and in the user's place
    assert (workspace.items.ids[pairs.item] == pairs.item_id).all()


def test_without_a_past_there_are_no_pairs(workspace: Workspace) -> None:
    source = CONFIG.build(workspace)
    assert len(source.at(workspace.dataset.windows[0].start)) == 0
    assert source.at(workspace.dataset.windows[0].start).feature.shape == (0, len(source.names))


def test_reading_again_and_backwards_changes_nothing(workspace: Workspace) -> None:
    reader = AskedReader(workspace, kept_for=DAY)
    spans = [(window.start, window.end) for window in workspace.dataset.windows]
    forwards = [reader.between(*span).item_id.tolist() for span in spans]
    backwards = [reader.between(*span).item_id.tolist() for span in reversed(spans)]
    stored = [workspace.requests(window.index).item_id.tolist() for window in workspace.dataset.windows]
    assert forwards == backwards[::-1] == stored


def test_what_is_not_there_is_said(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"place: there is no 'page'; allowed are store, weekday, hour"):
        PairSource.Config(place="page").build(workspace)
    with pytest.raises(ConfigError, match=r"attributes: there is no 'colour'"):
        PairSource.Config(attributes=["colour"]).build(workspace)
