"""Keys and values that were stored give what a whole sequence would have given."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foundation.hstu.cache import KeyValueCache
from foundation.hstu.jagged import Join, offsets_of
from foundation.hstu.layer import HSTULayer, HSTUStack, Sequences
from hypercast.training.random import initialise_

WIDTH, HEADS, CONTEXT, HOUR = 8, 2, 2, 3_600_000_000
SIZES = st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3))
"""History stored first, events that come later, targets: of one sequence."""


def stack(dtype: torch.dtype = torch.float64, **options: int | None) -> HSTUStack:
    config = HSTUStack.Config(layers=3, heads=HEADS, time_buckets=64).model_copy(update=options)
    made = HSTUStack(config, width=WIDTH, positions=9, dropouts=[nn.Identity() for _ in range(config.layers)])
    initialise_(made, 3)
    return made.to(dtype).eval()


def part(lengths: list[int], *, seed: int, targets: bool, dtype: torch.dtype) -> tuple[Tensor, Sequences]:
    stream = torch.Generator().manual_seed(seed)
    lengths_B = torch.tensor(lengths, dtype=torch.int64)
    tokens = int(lengths_B.sum())
    sequences = Sequences(
        offsets=offsets_of(lengths_B),
        num_targets=lengths_B * targets,
        contextual_len=CONTEXT,
        timestamps=torch.randint(0, 1000 * HOUR, (tokens,), generator=stream),
        max_seq_len=11,
    )
    return torch.randn(tokens, WIDTH, generator=stream, dtype=torch.float64).to(dtype), sequences


def joined(first: tuple[Tensor, Sequences], second: tuple[Tensor, Sequences]) -> tuple[Tensor, Sequences]:
    join = Join.of(first[1].offsets, second[1].offsets)
    sequences = replace(second[1], offsets=join.offsets, timestamps=join(first[1].timestamps, second[1].timestamps))
    return join(first[0], second[0]), sequences


def parts(sizes: list[tuple[int, int, int]], dtype: torch.dtype) -> list[tuple[Tensor, Sequences]]:
    """Context and early history; later history; targets."""
    early, late, targets = zip(*sizes, strict=True)
    return [
        part([CONTEXT + length for length in early], seed=1, targets=False, dtype=dtype),
        part(list(late), seed=2, targets=False, dtype=dtype),
        part(list(targets), seed=3, targets=True, dtype=dtype),
    ]


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", [{}, {"max_distance": 2}, {"max_distance": 2, "full_tail": 1}, {"time_buckets": 0}])
@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(SIZES, min_size=1, max_size=3))
@torch.no_grad()
def test_targets_over_a_cache_are_targets_of_whole_sequences(
    dtype: torch.dtype, options: dict[str, int | None], sizes: list[tuple[int, int, int]]
) -> None:
    model = stack(dtype, **options)
    early, late, targets = parts(sizes, dtype)
    history = joined(early, late)
    whole = joined(history, targets)
    expected = model(*whole)[Join.of(history[1].offsets, targets[1].offsets).second_T]
    assert_close(model(*targets, model.encode(*history)), expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", [{}, {"max_distance": 2}, {"time_buckets": 0}, {"layers": 1}])
@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(SIZES, min_size=1, max_size=3))
@torch.no_grad()
def test_extending_is_encoding_anew(
    dtype: torch.dtype, options: dict[str, int | None], sizes: list[tuple[int, int, int]]
) -> None:
    model = stack(dtype, **options)
    early, late, targets = parts(sizes, dtype)
    extended = model.encode(*late, model.encode(*early))
    anew = model.encode(*joined(early, late))
    for mine, theirs in zip(extended, anew, strict=True):
        assert_close(mine.keys_SHD, theirs.keys_SHD, dtype)
        assert_close(mine.values_SHV, theirs.values_SHV, dtype)
        assert mine.offsets.equal(theirs.offsets) and mine.timestamps.equal(theirs.timestamps)
    assert_close(model(*targets, extended), model(*targets, anew), dtype)


@torch.no_grad()
def test_a_layer_encodes_as_it_forwards() -> None:
    model, (early, late, _) = stack(), parts([(4, 2, 0), (0, 3, 0)], torch.float64)
    layer, history = model.layers[0], joined(early, late)
    assert isinstance(layer, HSTULayer)
    output, cache = layer.encode(*history)
    assert output.equal(layer(*history))
    stored = layer.store(*history)
    assert stored.keys_SHD.equal(cache.keys_SHD) and stored.values_SHV.equal(cache.values_SHV)
    new, _ = layer.encode(*late, layer.store(*early))
    assert_close(new, output[Join.of(early[1].offsets, late[1].offsets).second_T], torch.float64)


@torch.no_grad()
def test_a_target_reads_the_cache() -> None:
    """The equalities above would hold for a stack that lets targets see nothing."""
    model, (early, late, targets) = stack(), parts([(4, 2, 2)], torch.float64)
    few, many = model.encode(*early), model.encode(*joined(early, late))
    assert not torch.allclose(model(*targets, few), model(*targets, many), rtol=0, atol=1e-6)


@torch.no_grad()
def test_sequences_of_a_cache_share_its_memory() -> None:
    model, (early, _, _) = stack(), parts([(4, 0, 0), (0, 0, 0), (2, 0, 0)], torch.float64)
    (cache, *_) = model.encode(*early)
    some = cache.sequences(1, 3)
    assert some.offsets.tolist() == [0, 2, 6]
    assert some.keys_SHD.equal(cache.keys_SHD[6:]) and some.values_SHV.equal(cache.values_SHV[6:])
    assert some.timestamps.equal(cache.timestamps[6:])
    assert some.keys_SHD.data_ptr() == cache.keys_SHD[6:].data_ptr()
    none = cache.sequences(0, 0)
    assert none.offsets.tolist() == [0] and len(none.keys_SHD) == 0


def test_a_cache_keeps_no_other_projection_in_memory() -> None:
    model, (early, _, _) = stack(), parts([(4, 0, 0)], torch.float64)
    with torch.no_grad():
        caches = model.encode(*early)
    for cache in caches:
        for tensor in (cache.keys_SHD, cache.values_SHV):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_what_cannot_be_stored_is_refused() -> None:
    early, late, targets = parts([(4, 2, 1)], torch.float64)
    with pytest.raises(ValueError, match="only context and history are stored"):
        stack().encode(*targets)
    tailed = stack(max_distance=2, full_tail=1)
    caches = tailed.encode(*early)
    with pytest.raises(ValueError, match="cannot be extended with both max_distance and full_tail"):
        tailed.encode(*late, caches)
    one, two = (
        KeyValueCache(
            keys_SHD=torch.zeros(0, 1, 1),
            values_SHV=torch.zeros(0, 1, 1),
            offsets=torch.zeros(count + 1, dtype=torch.int64),
            timestamps=torch.zeros(0, dtype=torch.int64),
        )
        for count in (1, 2)
    )
    with pytest.raises(ValueError, match="a cache of 1 sequences by 2"):
        one.extend(two)


def test_sequences_taken_apart_and_put_together_again() -> None:
    x_TD, sequences = part([4, 2, 5], seed=1, targets=False, dtype=torch.float32)
    cache = stack(torch.float32).encode(x_TD, sequences)[1]
    apart = [cache.sequences(row, row + 1).own() for row in range(3)]
    together = KeyValueCache.together(apart)
    for name in ("keys_SHD", "values_SHV", "offsets", "timestamps"):
        assert torch.equal(getattr(together, name), getattr(cache, name)), name
    assert KeyValueCache.together(apart[:1]) is apart[0]
    assert sum(each.nbytes for each in apart) == cache.nbytes
    assert all(each.keys_SHD.untyped_storage().nbytes() == each.keys_SHD.nbytes for each in apart)
    times = torch.tensor([7, 8, 9])
    first = apart[2].beginning(times)
    assert torch.equal(first.keys_SHD, apart[2].keys_SHD[:3]) and torch.equal(first.values_SHV, apart[2].values_SHV[:3])
    assert first.offsets.tolist() == [0, 3] and torch.equal(first.timestamps, times)
