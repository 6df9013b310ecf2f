"""Counts of both layouts are those of a loop over requests and candidates."""

import pytest

from streaming.layout import Layout, layout
from streaming.schema import microseconds
from streaming.workspace import Workspace


@pytest.mark.parametrize("history", [0, 4, 1000])
def test_counts(workspace: Workspace, history: int) -> None:
    dataset = workspace.dataset
    events = [
        (row["user_id"], microseconds(row["time"]))
        for window in dataset.windows
        for row in dataset.engagements(window.index).to_pylist()
    ]
    requests = impressions = tokens = impression_tokens = 0
    for window in dataset.windows:
        for row in dataset.requests(window.index).to_pylist():
            time, candidates = microseconds(row["time"]), len(row["item_id"])
            length = min(history, sum(user == row["user_id"] and at < time for user, at in events))
            requests, impressions = requests + 1, impressions + candidates
            tokens, impression_tokens = tokens + length, impression_tokens + length * candidates
    found = layout(workspace, history=history)
    assert (found.requests, found.impressions) == (requests, impressions)
    assert (found.tokens, found.impression_tokens) == (tokens, impression_tokens)
    assert found.dedup_ratio == (impression_tokens / tokens if tokens else 1.0)


def test_bytes(workspace: Workspace) -> None:
    none, some = layout(workspace, history=0), layout(workspace, history=4)
    assert some.request_bytes == none.request_bytes  # a request stores no history
    assert some.impression_bytes - none.impression_bytes == 14 * some.impression_tokens
    config = workspace.dataset.config
    user = 8 * len(config.user_attributes)
    row = 8 * (3 + len(config.context)) + len(config.tags)
    candidate = 4 + 8 + 1 + 4 * len(config.dense) + 12 * len(config.tasks) + 4 + 1
    assert none.impression_bytes == none.impressions * (row + user + candidate)
    users = len(workspace.users.ids)
    engagements = 14 * len(workspace.engagements.time) + 8 * (2 * len(workspace.engagements.users) + 1)
    once = engagements + 8 * users * (1 + len(config.user_attributes))
    assert none.request_bytes == none.requests * row + none.impressions * candidate + once


def test_of_nothing() -> None:
    assert Layout().dedup_ratio == Layout().byte_ratio == 1.0
