"""Which backend computes, and what is said when the fast one cannot."""

import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from foundation.hstu.attention import cpu_backend, dispatch, operator, triton_backend
from tests.foundation.hstu.attention.cases import make_case, results

CPU = torch.device("cpu")


@pytest.fixture
def afresh() -> Iterator[None]:
    """Without a choice made before, and none left behind."""
    dispatch._cpu_backend.cache_clear()
    yield
    dispatch._cpu_backend.cache_clear()


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Backends looked up by the operators, in order; each computes blockwise."""
    names: list[str] = []
    blockwise = operator._module("blockwise")
    monkeypatch.setattr(operator, "_module", lambda name: names.append(name) or blockwise)
    return names


def test_float64_is_the_references_alone() -> None:
    made = make_case([(4, 1)])
    assert dispatch.choose(CPU, torch.float64) == "reference"
    assert made.attend(None).equal(made.attend("reference"))
    for backend in dispatch.BACKENDS[1:]:
        with pytest.raises(TypeError, match=f"'{backend}' takes float32 and bfloat16; float64 is for the reference"):
            made.attend(backend)
        with pytest.raises(TypeError, match="float64 is for the reference"):
            made.attend_cached([2], backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_kernels_first(
    monkeypatch: pytest.MonkeyPatch, afresh: None, used: list[str], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(cpu_backend, "unavailable", lambda: None)
    made = make_case([(4, 1)]).cast(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.attend(None).float().sum().backward()
        made.attend_cached([2], None)
    assert used == ["cpu", "cpu", "cpu"]
    assert dispatch.choose(torch.device("cuda"), dtype) == "triton"


def test_one_warning_when_kernels_cannot_be_compiled(
    monkeypatch: pytest.MonkeyPatch, afresh: None, used: list[str]
) -> None:
    monkeypatch.setattr(cpu_backend, "unavailable", lambda: "no C++ compiler")
    made = make_case([(4, 1)], dtype=torch.float32)
    words = "without its compiled kernels, several times slower: no C"
    with pytest.warns(UserWarning, match=words):
        first = made.attend(None)
    assert first.equal(made.attend("blockwise"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.attend(None)
        made.attend_cached([2], None)
    assert set(used) == {"blockwise"}


def test_a_backend_that_does_not_exist() -> None:
    made = make_case([(4, 1)], dtype=torch.float32)
    for attend in (made.attend, lambda name: made.attend_cached([2], name)):
        with pytest.raises(ValueError, match="backend 'cudnn': allowed are reference, blockwise, cpu, triton") as error:
            attend("cudnn")
        assert "Example" in str(error.value)


def test_states_of_all_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(dispatch.available()) == set(dispatch.BACKENDS)
    monkeypatch.setattr(cpu_backend, "unavailable", lambda: "no compiler")
    monkeypatch.setattr(triton_backend, "unavailable", lambda: None)
    assert dispatch.available() == {
        "reference": "available",
        "blockwise": "available",
        "cpu": "no compiler",
        "triton": "available",
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tables_of_any_float_dtype(dtype: torch.dtype) -> None:
    made = make_case([(6, 2)]).cast(torch.float32)
    other = made.cast(torch.float32, tables=dtype)
    expected, actual = results(made, "blockwise"), results(other, "blockwise")
    assert actual["output"].equal(expected["output"])
    for name in ("position_bias", "time_bias"):
        assert actual[name].equal(expected[name].to(dtype))


def test_targets_are_none_unless_given(used: list[str]) -> None:
    made = make_case([(6, 0), (3, 0)], dtype=torch.float32)
    options = made.options()
    del options["num_targets"]
    output = dispatch.hstu_attention(made.q, made.k, made.v, made.offsets, **options, backend="blockwise")
    assert output.equal(made.attend("blockwise"))


def test_the_scale_is_that_of_the_width_unless_given() -> None:
    made = make_case([(6, 2)], width=16, dtype=torch.float32)
    for backend in ("reference", "blockwise"):
        assert made.attend(backend).equal(replace(made, scale=0.25).attend(backend))
        assert not made.attend(backend).equal(replace(made, scale=0.5).attend(backend))
