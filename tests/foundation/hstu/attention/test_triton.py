"""The Triton kernels without a GPU: right in the interpreter, compiled for every GPU they are meant for."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from foundation.hstu.attention import dispatch, triton_backend
from foundation.hstu.attention.triton_kernels import tuning
from tests.foundation.hstu.attention.cases import make_case

HERE = Path(__file__).parent
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that one program may have, by generation of GPU."""
KERNELS = ("forward", "backward_keys", "backward_queries", "backward_biases")
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}

compiled_here = pytest.mark.skipif(
    triton_backend.interpreted(), reason="kernels are compiled where the interpreter is off"
)


def run_interpreted(*arguments: str) -> None:
    """Pytest in a process of its own: Triton asks for the interpreter once, when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=HERE.parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_kernels_in_the_interpreter() -> None:
    run_interpreted(str(HERE / "interpreted_triton.py"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_contract_of_every_backend_in_the_interpreter() -> None:
    run_interpreted(str(HERE / "test_backends.py"), "-k", "triton")


@compiled_here
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dispatch.available()["triton"].startswith("no CUDA device")
    with pytest.raises(ValueError, match="tensors on a CUDA device; q is on cpu"):
        make_case([(3, 1)], dtype=torch.float32).attend("triton")


def test_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, reason in (((7, 5), "the GPU is older than sm_80"), ((9, 0), "None")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert str(triton_backend.unavailable()).startswith(reason)


@pytest.mark.parametrize(
    ("capability", "generation"), [((8, 0), 80), ((8, 9), 80), ((9, 0), 90), ((10, 0), 100), ((12, 0), 80)]
)
def test_every_gpu_has_its_rows_of_the_table(capability: tuple[int, int], generation: int) -> None:
    assert tuning.generation(capability) == generation


def launches(kind: tuning.Kind, width: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, dict[str, Any]]]:
    """What the backend asks of Triton with every feature on: each kernel with its arguments, by name."""
    found: dict[str, tuple[Any, dict[str, Any]]] = {}

    def record(kernel: Any, grid: Any, arguments: dict[str, Any], outputs: dict[str, Any], **values: Any) -> None:
        given = arguments | outputs | values
        name = next(name for name in KERNELS if getattr(tuning, name) is kernel)
        found["cached" if given.get("k_cache_ptr") is not None else name] = (kernel.fn, given)

    monkeypatch.setattr(triton_backend, "interpreted", lambda: True)  # tensors on a CPU will do
    monkeypatch.setattr(triton_backend, "_launch", record)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest" if kind == "ieee" else "high")
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    made = make_case([(20, 2), (3, 0)], heads=4, width=width, positions=512, buckets=128, max_distance=9, full_tail=2)
    made = made.cast(dtype, tables=torch.float32)
    made.attend("triton").sum().backward()
    made.attend_cached([10, 1], "triton")
    return found


def compile_for(kernel: Any, arguments: dict[str, Any], config: triton.Config, generation: int) -> Any:
    """The kernel as Triton would specialise it for these arguments, compiled for a GPU that need not be here."""
    signature, constants, attributes = {}, {}, {}
    values = arguments | config.kwargs
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        else:
            signature[parameter.name] = "i32"
        aligned = value.data_ptr() if isinstance(value, torch.Tensor) else value
        if aligned % 16 == 0 and not isinstance(value, float) and not parameter.do_not_specialize:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", generation, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True},
    )


def stack_bytes(cubin: bytes) -> int:
    """Local memory of one thread: what did not fit into its registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        listing = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:\d+ STACK:(\d+)", listing.stdout)
    assert found is not None, listing.stdout
    return int(found.group(1))


def assert_fits(kernel: str, compiled: Any, config: triton.Config, generation: int) -> None:
    where = f"{kernel} for sm_{generation} with {config}"
    assert compiled.asm["cubin"], where
    assert compiled.metadata.shared <= SHARED[generation], where
    assert stack_bytes(compiled.asm["cubin"]) == 0, where


def table_name(launch: str) -> str:
    return "forward" if launch == "cached" else launch


@compiled_here
@pytest.mark.parametrize(
    ("kind", "generation", "width"), [("bf16", 90, 32), ("ieee", 80, 32)], ids=lambda value: str(value)
)
def test_the_first_choice_compiles_and_fits(
    kind: tuning.Kind, generation: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (kernel, arguments) in launches(kind, width, monkeypatch).items():
        config = tuning.candidates(table_name(name), kind, width, generation)[0]
        assert_fits(name, compile_for(kernel, arguments, config, generation), config, generation)


@compiled_here
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["bf16", "tf32", "ieee"])
@pytest.mark.parametrize("generation", tuning.GENERATIONS)
@pytest.mark.parametrize("width", tuning.WIDTHS)
def test_every_choice_compiles_and_fits(
    kind: tuning.Kind, generation: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (kernel, arguments) in launches(kind, width, monkeypatch).items():
        for config in tuning.candidates(table_name(name), kind, width, generation):
            assert_fits(name, compile_for(kernel, arguments, config, generation), config, generation)
