"""Surfaces by name: whatever the data call them, a name is safe in a path, and no two are mixed up."""

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.errors import DataError
from streaming.importers.mapping.roles import SurfaceConfig
from streaming.importers.mapping.surfaces import Surfaces


def surfaces(**config: object) -> Surfaces:
    return Surfaces(config=SurfaceConfig.model_validate({"column": "page", **config}))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(min_size=1, max_size=12), max_size=20))
def test_any_value_gets_a_safe_name_of_its_own_or_is_refused(values: list[str]) -> None:
    found = surfaces()
    try:
        number, missing = found.of(pa.array(values, pa.string()))
    except DataError:  # two values that would share a name, as in a test below
        return
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", name) for name in found.names)
    texts = [value.strip() for value in values]
    for one, text in enumerate(texts):
        for other, another in enumerate(texts):
            if not missing[one] and not missing[other]:
                assert (number[one] == number[other]) == (text == another)


@pytest.mark.parametrize(
    ("value", "name"),
    [("../../etc/passwd", "etc_passwd"), ("/", "unnamed"), ("=cmd()", "cmd"), ("0", "surface_0"), ("Sci-Fi", "Sci-Fi")],
)
def test_a_value_that_could_be_a_path_becomes_none(value: str, name: str) -> None:
    found = surfaces()
    found.of(pa.array([value]))
    assert found.names == [name]
    assert found.renamed() == ({} if value == name else {value: name})


def test_names_of_the_mapping_go_first_and_may_join_surfaces() -> None:
    found = surfaces(names={"0": "home", 1: "home", "x": "search"}, prefix="tab_")
    number, _ = found.of(pa.array(["0", "1", "2", "x"]))
    assert [found.names[each] for each in number] == ["home", "home", "tab_2", "search"]
    assert found.renamed() == {"2": "tab_2"}


def test_rows_without_a_surface_are_missing_or_on_another() -> None:
    number, missing = surfaces().of(pa.array(["a", None, ""]))
    assert missing.tolist() == [False, True, True] and number.tolist() == [0, -1, -1]
    found = surfaces(otherwise="elsewhere")
    number, missing = found.of(pa.array(["a", None, ""]))
    assert not missing.any() and [found.names[each] for each in number] == ["a", "elsewhere", "elsewhere"]


def test_two_values_that_would_share_a_name_by_chance_are_refused() -> None:
    with pytest.raises(DataError, match=r"'a/b' and 'a b' would both be called a_b"):
        surfaces().of(pa.array(["a/b", "a b"]))


@pytest.mark.parametrize("many", [128, 10_000])
def test_there_is_room_for_so_many_surfaces(many: int) -> None:
    assert len(np.unique(surfaces().of(pa.array([f"s{n}" for n in range(127)]))[0])) == 127
    with pytest.raises(DataError, match="at most 127 surfaces"):
        surfaces().of(pa.array([f"s{n}" for n in range(many)]))


def test_order_is_that_of_names() -> None:
    found = surfaces()
    found.of(pa.array(["b", "c", "a"]))
    assert found.order().tolist() == [1, 2, 0, -1]
