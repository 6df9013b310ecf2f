"""Counts of exact matches are those of two nested loops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.backbone.matching import match_counts
from experts.backbone.parts import Past
from streaming.batch import History

REQUESTS = st.lists(
    st.tuples(st.lists(st.integers(0, 5), max_size=6), st.lists(st.integers(0, 5), max_size=3)), min_size=1, max_size=4
)


@settings(deadline=None, max_examples=100)
@given(REQUESTS, st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=6, max_size=6))
def test_two_loops(requests: list[tuple[list[int], list[int]]], codes: list[list[int]]) -> None:
    """Code 0 is an unknown value, which equals nothing."""
    events = [item for history, _ in requests for item in history]
    candidates = [item for _, wanted in requests for item in wanted]
    count_B = torch.tensor([len(wanted) for _, wanted in requests])
    nothing = torch.zeros(len(events), dtype=torch.int64)
    past = Past(
        item_UD=torch.zeros(6, 2),
        code_UA=torch.tensor(codes) * (2**62 - 1),  # hashes are large
        history=History(
            item_L=torch.tensor(events, dtype=torch.int64),
            surface_L=nothing,
            action_L=nothing,
            time_L=nothing,
            offsets=torch.tensor([0, *(len(history) for history, _ in requests)]).cumsum(0),
        ),
        item_C=torch.tensor(candidates, dtype=torch.int64),
        owner_C=torch.arange(len(requests)).repeat_interleave(count_B),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), count_B.cumsum(0)]),
        time_B=torch.zeros(len(requests), dtype=torch.int64),
    )
    expected = [
        [sum(codes[event][a] == codes[wanted][a] != 0 for event in history) for a in range(2)]
        for history, every in requests
        for wanted in every
    ]
    assert match_counts(past).tolist() == expected
