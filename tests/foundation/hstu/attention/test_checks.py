"""Bad arguments: one error that names the argument and says what was expected, on every way to attention."""

from typing import Any

import pytest
import torch

from foundation.hstu.attention import dispatch

T, H, D, V, S = 7, 2, 4, 3, 5


def good() -> dict[str, Any]:
    """What attention takes: sequences of 3 and 4 tokens, with 1 and 2 targets."""
    return {
        "q_THD": torch.zeros(T, H, D),
        "k_THD": torch.zeros(T, H, D),
        "v_THV": torch.zeros(T, H, V),
        "offsets": torch.tensor([0, 3, 7]),
        "max_seq_len": 10,
        "num_targets": torch.tensor([1, 2]),
        "contextual_len": 1,
        "max_distance": 3,
        "full_tail": 1,
        "position_bias": torch.zeros(6),
        "time_bias": torch.zeros(8),
        "timestamps": torch.arange(T),
    }


def good_cached() -> dict[str, Any]:
    """Over 2 and 3 stored tokens."""
    return good() | {
        "k_cache_SHD": torch.zeros(S, H, D),
        "v_cache_SHV": torch.zeros(S, H, V),
        "cache_offsets": torch.tensor([0, 2, 5]),
        "cache_timestamps": torch.arange(S),
    }


WRONG = [
    ({"q_THD": torch.zeros(T, H * D)}, ValueError, r"q has shape \[7, 8\]; expected \[T, H, D\]"),
    ({"k_THD": torch.zeros(T, H, D + 1)}, ValueError, r"k has shape \[7, 2, 5\]; expected that of q, \[7, 2, 4\]"),
    ({"k_THD": torch.zeros(T + 1, H, D)}, ValueError, r"k has shape \[8, 2, 4\]; expected that of q, \[7, 2, 4\]"),
    ({"v_THV": torch.zeros(T, H + 1, V)}, ValueError, r"v has shape \[7, 3, 3\]; expected \[T, H, V\] = \[7, 2, V\]"),
    ({"v_THV": torch.zeros(T, V)}, ValueError, r"v has shape \[7, 3\]; expected \[T, H, V\]"),
    ({"v_THV": torch.zeros(T, H, V, dtype=torch.bfloat16)}, TypeError, "q, k, v are .*bfloat16; expected one dtype"),
    ({name: torch.zeros(T, H, D).half() for name in ("q_THD", "k_THD", "v_THV")}, TypeError, "float16.*expected one"),
    ({name: torch.zeros(T, H, D).long() for name in ("q_THD", "k_THD", "v_THV")}, TypeError, "int64.*expected one"),
    ({"offsets": torch.tensor([0, 3, 8])}, ValueError, "offsets run from 0 to 8 for 7 tokens; .* to end at 7"),
    ({"offsets": torch.tensor([1, 3, 7])}, ValueError, "offsets run from 1 to 7 for 7 tokens; expected to start at 0"),
    ({"offsets": torch.tensor([0, 9, 7])}, ValueError, "offsets .* never to decrease"),
    (
        {"offsets": torch.tensor([0, 3, 7]).int()},
        ValueError,
        r"offsets .*int32; expected int64 \[B \+ 1\], for example",
    ),
    ({"offsets": torch.tensor([[0, 3, 7]])}, ValueError, r"offsets has shape \[1, 3\].*; expected int64 \[B \+ 1\]"),
    (
        {"offsets": torch.zeros(0, dtype=torch.int64)},
        ValueError,
        r"offsets has shape \[0\].*; expected int64 \[B \+ 1\]",
    ),
    ({"num_targets": torch.tensor([1])}, ValueError, r"num_targets has shape \[1\].*; expected int64 \[2\]"),
    ({"num_targets": torch.tensor([1.0, 2.0])}, ValueError, r"num_targets .*float32; expected int64 \[2\]"),
    (
        {"num_targets": torch.tensor([4, 2])},
        ValueError,
        r"num_targets \[4, 2\] must lie between 0 and the lengths \[3, 4\]",
    ),
    ({"num_targets": torch.tensor([-1, 2])}, ValueError, r"num_targets \[-1, 2\] must lie between 0"),
    ({"max_seq_len": 0}, ValueError, "max_seq_len is 0; expected an integer of at least 1"),
    ({"contextual_len": -1}, ValueError, "contextual_len is -1; expected an integer of at least 0"),
    ({"max_distance": -2}, ValueError, "max_distance is -2; expected an integer of at least 0"),
    ({"full_tail": -1}, ValueError, "full_tail is -1; expected an integer of at least 0"),
    (
        {"position_bias": torch.zeros(2, 3)},
        ValueError,
        r"position_bias has shape \[2, 3\].*one float per distance, \[P\]",
    ),
    ({"position_bias": torch.zeros(0)}, ValueError, r"position_bias has shape \[0\].*one float per distance, \[P\]"),
    (
        {"time_bias": torch.zeros(4).long()},
        ValueError,
        r"time_bias .*int64; expected one float per bucket of time, \[K\]",
    ),
    ({"timestamps": None}, ValueError, r"time_bias needs timestamps: int64 microseconds, \[T\] = \[7\]"),
    ({"timestamps": torch.zeros(T)}, ValueError, r"timestamps has shape \[7\] .*float32; expected int64 \[7\]"),
    ({"timestamps": torch.arange(T + 1)}, ValueError, r"timestamps has shape \[8\].*; expected int64 \[7\]"),
]
WRONG_CACHE = [
    ({"k_cache_SHD": torch.zeros(S, H * D)}, ValueError, r"k_cache has shape \[5, 8\]; expected \[5, 2, 4\]"),
    ({"k_cache_SHD": torch.zeros(S, H, D + 1)}, ValueError, r"k_cache has shape \[5, 2, 5\]; expected \[5, 2, 4\]"),
    ({"v_cache_SHV": torch.zeros(S + 1, H, V)}, ValueError, r"v_cache has shape \[6, 2, 3\]; expected \[5, 2, 3\]"),
    ({"k_cache_SHD": torch.zeros(S, H, D).double()}, TypeError, "k_cache is torch.float64; expected .* torch.float32"),
    (
        {"v_cache_SHV": torch.zeros(S, H, V).bfloat16()},
        TypeError,
        "v_cache is torch.bfloat16; expected .* torch.float32",
    ),
    (
        {"cache_offsets": torch.tensor([0, 5])},
        ValueError,
        "cache_offsets has 1 sequences and offsets 2; expected as many",
    ),
    ({"cache_offsets": torch.tensor([0, 2, 6])}, ValueError, "cache_offsets run from 0 to 6 for 5 tokens"),
    ({"cache_offsets": torch.tensor([0, 2, 5]).int()}, ValueError, "cache_offsets .*int32; expected int64"),
    ({"cache_timestamps": None}, ValueError, r"time_bias needs cache_timestamps: int64 microseconds, \[S\] = \[5\]"),
    ({"cache_timestamps": torch.arange(T)}, ValueError, r"cache_timestamps has shape \[7\].*; expected int64 \[5\]"),
]


@pytest.fixture(params=["reference", "blockwise", None])
def backend(request: pytest.FixtureRequest) -> str | None:
    return request.param


def test_what_is_good(backend: str | None) -> None:
    assert dispatch.hstu_attention(**good(), backend=backend).shape == (T, H, V)
    assert dispatch.hstu_attention_cached(**good_cached(), backend=backend).shape == (T, H, V)


@pytest.mark.parametrize(("change", "error", "words"), WRONG, ids=[words[:40] for *_, words in WRONG])
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str, backend: str | None) -> None:
    with pytest.raises(error, match=words):
        dispatch.hstu_attention(**good() | change, backend=backend)
    with pytest.raises(error, match=words):
        dispatch.hstu_attention_cached(**good_cached() | change, backend=backend)


@pytest.mark.parametrize(("change", "error", "words"), WRONG_CACHE, ids=[words[:40] for *_, words in WRONG_CACHE])
def test_bad_cache(change: dict[str, Any], error: type[Exception], words: str, backend: str | None) -> None:
    with pytest.raises(error, match=words):
        dispatch.hstu_attention_cached(**good_cached() | change, backend=backend)


def test_timestamps_are_needed_for_the_time_bias_only() -> None:
    bare = good() | {"time_bias": None, "timestamps": None}
    assert dispatch.hstu_attention(**bare).shape == (T, H, V)
    stored = good_cached() | {"time_bias": None, "timestamps": None, "cache_timestamps": None}
    assert dispatch.hstu_attention_cached(**stored).shape == (T, H, V)
