"""Rows become requests: who belongs together, and ids that depend on nothing else."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.importers.mapping.grouping import Grouping, group

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 30)), max_size=40)


def grouped(rows: list[tuple[int, int, int]], within: int) -> Grouping:
    user, request, time = (np.array([row[at] for row in rows], dtype=np.int64) for at in range(3))
    return group(user=user, time=time, request=request, within=within)


def one_by_one(rows: list[tuple[int, int, int]], within: int) -> set[tuple[int, ...]]:
    """The same, row after row, from the definition: sets of indices of rows."""
    requests: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda each: rows[each]):
        last = requests[-1] if requests else None
        if last and rows[last[0]][:2] == rows[index][:2] and rows[index][2] <= rows[last[0]][2] + within:
            last.append(index)
        else:
            requests.append([index])
    return {tuple(request) for request in requests}


@settings(deadline=None, max_examples=50)
@given(ROWS, st.integers(0, 10))
def test_grouping_is_its_definition(rows: list[tuple[int, int, int]], within: int) -> None:
    found = grouped(rows, within)
    parts = [tuple(part.tolist()) for part in np.split(found.rows, found.offsets[1:-1])] if rows else []
    assert set(parts) == one_by_one(rows, within)
    assert [rows[part[0]][2] for part in parts] == found.time.tolist() == sorted(found.time.tolist())
    assert [rows[part[0]][0] for part in parts] == found.user.tolist()


@settings(deadline=None, max_examples=50)
@given(ROWS, st.integers(0, 10))
def test_ids_are_unique_and_depend_on_the_request_alone(rows: list[tuple[int, int, int]], within: int) -> None:
    found = grouped(rows, within)
    ids = dict(zip(found.first.tolist(), found.request_id.tolist(), strict=True))
    assert len(set(ids.values())) == len(ids)
    assert all(0 <= each < 2**63 for each in ids.values())
    of_user_0 = [index for index, row in enumerate(rows) if row[0] == 0]
    alone = grouped([rows[index] for index in of_user_0], within)
    for first, request_id in zip(alone.first.tolist(), alone.request_id.tolist(), strict=True):
        assert ids[of_user_0[first]] == request_id
