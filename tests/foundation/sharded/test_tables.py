"""Tables in pieces: the planner's budget, and sums of squares under another cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.sharded.config import Sharding
from foundation.sharded.group import Group
from foundation.sharded.plan import Piece
from foundation.sharded.tables import ShardedTables, Squares
from streaming.errors import ConfigError

WIDTH = 16


def tables_of(group: Group, **sharding: object) -> ShardedTables:
    return ShardedTables(
        {"items/id": 1000, "users/id": 50},
        width=WIDTH,
        learning_rate=0.1,
        sharding=Sharding(workers=1, **sharding),  # type: ignore[arg-type]
        group=group,
        batch_size=8,
    )


def test_tables_that_do_not_fit_are_refused_with_what_they_need(alone: Group) -> None:
    fitting = tables_of(alone, memory_mib=1.0)
    assert sum(piece.bytes for piece in fitting.pieces) == 4 * 1050 * (WIDTH + 1)
    with pytest.raises(ConfigError, match=r"sharding.memory_mib: 0.05 .* 0.1 MiB .* more memory, more workers"):
        tables_of(alone, memory_mib=0.05)


@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise", "data_parallel"])
def test_the_kind_that_is_allowed_is_taken_and_pieces_cover_every_table(alone: Group, kind: str) -> None:
    tables = tables_of(alone, kinds=[kind])
    assert {piece.kind for piece in tables.pieces} == {kind}
    for name, rows in tables.tables.items():
        assert sum(each.rows * each.columns for each in tables.pieces if each.table == name) == rows * WIDTH
    assert not any(tensor.any() for tensor in tables.whole().values())


cuts = st.lists(st.integers(1, WIDTH - 1), max_size=3, unique=True).map(lambda found: [0, *sorted(found)])


@given(cuts, cuts, st.integers(0, 2**32))
def test_sums_under_another_cut_are_what_its_columns_would_have_summed(
    before: list[int], after: list[int], seed: int
) -> None:
    """Exactly, where squares are alike within each old piece; and the same cut gives the same bits."""
    rows, stream = 5, torch.Generator().manual_seed(seed)
    old_RG = torch.rand(rows, len(before), generator=stream)
    ends = torch.tensor([*before[1:], WIDTH])
    by_column = old_RG.repeat_interleave(ends - torch.tensor(before), dim=1)
    squares = Squares({"t": before}, width=WIDTH)
    for begin, end in zip(after, [*after[1:], WIDTH], strict=True):
        piece = Piece(table="t", kind="column_wise", worker=0, row=0, rows=rows, column=begin, columns=end - begin)
        squares.into.append((piece, old_RG, torch.zeros(rows)))
    squares.use()
    for group, (piece, _, found_R) in enumerate(squares.into):
        expected_R = by_column[:, piece.column : piece.column + piece.columns].mean(1)
        torch.testing.assert_close(found_R, expected_R, rtol=1e-6, atol=0.0)
        assert before != after or torch.equal(found_R, old_RG[:, group])
