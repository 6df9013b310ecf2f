"""What is linear between two spaces is undone; what is left is said."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypercast.errors import StoreError
from hypercast.store import adapter
from hypercast.store.adapter import Adapter, fit
from streaming import files

SEEDS = st.integers(0, 2**32 - 1)


def fitted(source_ND: np.ndarray, target_NE: np.ndarray, group: int = 4) -> Adapter:
    return fit(
        source="FM@0008",
        target="FM@0007",
        source_ND=source_ND,
        target_NE=target_NE,
        group_N=np.arange(len(source_ND), dtype=np.int64) // group,
    )


def turned(random: np.random.Generator, width: int) -> np.ndarray:
    return np.linalg.qr(random.normal(size=(width, width)))[0]


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, width=st.integers(1, 12), scale=st.floats(1e-3, 1e3), noise=st.sampled_from([0.0, 0.01, 0.1, 0.5]))
def test_a_turned_stretched_and_moved_space_is_recovered_up_to_the_noise(
    seed: int, width: int, scale: float, noise: float
) -> None:
    random = np.random.default_rng(seed)
    source_ND = random.normal(size=(400, width))
    turn_DD = turned(random, width)
    target_NE = scale * (source_ND @ turn_DD + random.normal(size=width) + noise * random.normal(size=(400, width)))
    made = fitted(source_ND, target_NE)
    # The noise is the share of the target's variance that nothing can explain.
    floor = noise / (1 + noise**2) ** 0.5
    assert made.relative_error == pytest.approx(floor, rel=0.35, abs=1e-5)
    assert made.r2 == pytest.approx(1 - made.relative_error**2)
    assert np.abs(made.weight_DE / scale - turn_DD).max() < 0.3 * noise + 1e-5
    fresh_ND = random.normal(size=(50, width))
    wanted_NE = scale * (fresh_ND @ turn_DD)
    error = made.apply(fresh_ND) - made.bias_E - wanted_NE
    assert np.linalg.norm(error) <= (0.3 * noise + 1e-4) * np.linalg.norm(wanted_NE)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, width=st.integers(1, 12))
def test_the_same_space_needs_nothing(seed: int, width: int) -> None:
    vector_ND = np.random.default_rng(seed).normal(size=(100, width)).astype(np.float32)
    made = fitted(vector_ND, vector_ND)
    np.testing.assert_allclose(made.weight_DE, np.eye(width), atol=1e-5)
    np.testing.assert_allclose(made.apply(vector_ND), vector_ND, atol=1e-5)
    assert made.relative_error < 1e-5


def test_the_error_is_of_rows_that_were_held_out() -> None:
    """With as many rows as numbers a map fits everything, and explains nothing."""
    random = np.random.default_rng(0)
    made = fitted(random.normal(size=(64, 32)), random.normal(size=(64, 32)))
    assert made.relative_error > 0.9 and made.r2 < 0.2


def test_widths_may_differ_and_rows_may_be_fewer_than_numbers() -> None:
    random = np.random.default_rng(1)
    hidden_N3 = random.normal(size=(60, 3))
    source_ND, target_NE = hidden_N3 @ random.normal(size=(3, 50)), hidden_N3 @ random.normal(size=(3, 5))
    made = fitted(source_ND, target_NE)
    assert made.weight_DE.shape == (50, 5) and made.relative_error < 1e-3


@pytest.mark.parametrize("constant", ["source", "target", "both"])
def test_spaces_without_any_spread(constant: str) -> None:
    random = np.random.default_rng(2)
    source_ND, target_NE = random.normal(size=(40, 3)), random.normal(size=(40, 2))
    if constant != "target":
        source_ND[:] = 7
    if constant != "source":
        target_NE[:] = 0.1
    made = fitted(source_ND, target_NE)
    assert np.isfinite(made.weight_DE).all()
    np.testing.assert_allclose(made.apply(source_ND), np.broadcast_to(target_NE.mean(axis=0), (40, 2)), atol=0.6)
    assert made.relative_error == pytest.approx(1.0, abs=0.1) if constant == "source" else made.relative_error < 1e-6


def test_the_same_bits_whatever_the_memory_layout() -> None:
    random = np.random.default_rng(3)
    source_ND, target_NE = random.normal(size=(80, 6)), random.normal(size=(80, 6))
    made = [fitted(source_ND, target_NE), fitted(np.asfortranarray(source_ND), target_NE[::-1][::-1])]
    assert made[0].to_bytes() == made[1].to_bytes()


def test_one_flipped_byte_is_found(tmp_path: Path) -> None:
    made = fitted(np.random.default_rng(4).normal(size=(20, 3)), np.random.default_rng(5).normal(size=(20, 2)))
    files.write_bytes(tmp_path / "one.adapter", made.to_bytes())
    data = (tmp_path / "one.adapter").read_bytes()
    again = Adapter.from_bytes(data, where="one.adapter")
    np.testing.assert_array_equal(again.weight_DE, made.weight_DE)
    np.testing.assert_array_equal(again.bias_E, made.bias_E)
    facts = ("source", "target", "relative_error", "r2", "rows")
    assert [getattr(again, name) for name in facts] == [getattr(made, name) for name in facts]
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << (place % 8)
        with pytest.raises(StoreError, match=r"^one\.adapter: not an adapter, or damaged"):
            Adapter.from_bytes(bytes(broken), where="one.adapter")
    for length in (0, 10, 32, len(data) - 1):
        with pytest.raises(StoreError, match="damaged"):
            Adapter.from_bytes(data[:length], where="one.adapter")


@pytest.mark.parametrize(
    ("source", "rows", "groups", "message"),
    [
        ("FM@0008", 7, 2, "got 7 and 8 vectors of 2 groups"),
        ("FM@0008", 8, 1, "at least two groups"),
        ("Other@0008", 8, 2, "different lineages"),
    ],
)
def test_what_cannot_be_fitted_is_refused(source: str, rows: int, groups: int, message: str) -> None:
    group_N = np.arange(8, dtype=np.int64) % groups
    with pytest.raises(StoreError, match=message):
        fit(
            source=source,
            target="FM@0007",
            source_ND=np.ones((rows, 2)),
            target_NE=np.ones((8, 2)),
            group_N=group_N,
        )
    with pytest.raises(StoreError, match=r"takes vectors \[N, 3\], got \(4, 2\)"):
        fitted(np.ones((8, 3)), np.ones((8, 2))).apply(np.ones((4, 2)))


def test_the_inverse_is_one() -> None:
    random = np.random.default_rng(6)
    factor = random.normal(size=(40, 9))
    matrix = factor.T @ factor
    np.testing.assert_allclose(adapter._inverse(matrix) @ matrix, np.eye(9), atol=1e-10)
