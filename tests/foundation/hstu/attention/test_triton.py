"""The Triton kernels without a GPU: right in the interpreter, compiled for every GPU they are meant for."""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner

from foundation.hstu.attention import dispatch, triton_backend
from foundation.hstu.attention.triton_kernels import tuning
from tests.foundation.hstu.attention.cases import make_case

exhaustive = pytest.mark.skipif(
    "HYPERCAST_EXHAUSTIVE" not in os.environ, reason="takes most of an hour; HYPERCAST_EXHAUSTIVE=1 runs it"
)

HERE = Path(__file__).parent
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that one program may have, by generation of GPU."""
CONSUMER = 99 * 1024
"""The same of consumer cards, which take the first choice for sm_80."""
SPILLED = {"bf16": 16, "tf32": 16, "ieee": 96}
"""Bytes a thread may spill. A few numbers that a loop does not change: ptxas spends them for another program at a time.
Exact float32 holds its operands in registers; at width 128 the smallest block there is does not quite fit.
"""
KERNELS = ("forward", "cached", "backward_keys", "backward_queries", "backward_biases")

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


@exhaustive
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_contract_of_every_backend_in_the_interpreter() -> None:
    run_interpreted(str(HERE / "test_backends.py"), "-k", "triton", "--timeout", "3000")


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


@pytest.mark.parametrize("kind", ["bf16", "tf32", "ieee"])
@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_choices_for_a_gpu(kind: tuning.Kind, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the table has for the device, the dtype and the width; the first alone where bits must not change."""
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    precision = "tf32" if kind == "bf16" else kind
    arguments = {"q_ptr": torch.zeros(1, dtype=dtype), "PRECISION": precision, "D": 16, "V": width}
    deterministic = False
    monkeypatch.setattr(tuning, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    for name in KERNELS:
        every = getattr(tuning, name).configs
        deterministic = False
        found = tuning.choose(name, every, {}, **arguments)
        assert found == tuning.candidates(name, kind, width, 90) and all(config in every for config in found)
        deterministic = True
        assert tuning.choose(name, every, {}, **arguments) == found[:1]


@dataclass(frozen=True)
class AbsentGPU:
    """What Triton asks of a driver before it compiles."""

    generation: int

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.generation, 32)

    def get_current_device(self) -> int:
        return self.generation  # Triton keeps what it has compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


EVERYTHING = {"positions": 512, "buckets": 128, "max_distance": 9, "full_tail": 2}
NOTHING = {"positions": None, "buckets": None}


def launches(
    kind: tuning.Kind, width: int, patch: pytest.MonkeyPatch, features: dict[str, Any]
) -> dict[str, tuple[Autotuner, dict[str, Any]]]:
    """How the backend calls each kernel, by the kernel's name in the table."""
    found: dict[str, tuple[Autotuner, dict[str, Any]]] = {}

    def record(kernel: Autotuner, **given: Any) -> None:
        found[next(name for name in KERNELS if getattr(tuning, name) is kernel)] = kernel, given | {"grid": (1,)}

    made = make_case([(20, 2), (3, 0)], heads=4, width=width - 1, value_width=width, **features)
    made = made.cast(torch.bfloat16 if kind == "bf16" else torch.float32, tables=torch.float32)
    with patch.context() as patched:
        patched.setattr(triton_backend, "interpreted", lambda: True)  # tensors on a CPU will do
        patched.setattr(Autotuner, "run", record)
        patched.setattr(torch, "get_float32_matmul_precision", lambda: "highest" if kind == "ieee" else "high")
        made.attend("triton").sum().backward()
        made.attend_cached([10, 1], "triton")
    without = set() if made.position_bias is not None or made.time_bias is not None else {"backward_biases"}
    assert set(found) == set(KERNELS) - without
    return found


def assert_fits(
    kind: tuning.Kind,
    generation: int,
    width: int,
    patch: pytest.MonkeyPatch,
    *,
    first: bool,
    features: dict[str, Any] = EVERYTHING,
) -> None:
    """Each kernel compiles with all choices (or the ``first``), and fits into shared memory and registers."""
    for name, (kernel, given) in launches(kind, width, patch, features).items():
        with patch.context() as patched:
            patched.setattr(driver, "_active", AbsentGPU(generation))
            patched.setattr(torch.cuda, "get_device_capability", lambda: divmod(generation, 10))
            patched.setattr(torch, "are_deterministic_algorithms_enabled", lambda: first)
            given.pop("warmup", None)
            compiled = kernel.warmup(**given)
        assert len(compiled) == (1 if first else len(tuning.candidates(name, kind, width, generation)))
        for index, binary in enumerate(compiled):
            where = f"{name} {kind}, width {width}, choice {index} for sm_{generation}"
            shared, spilled = binary.metadata.shared, stack_bytes(binary.asm["cubin"])
            limit = CONSUMER if generation == 80 and index == 0 else SHARED[generation]
            assert shared <= limit, f"{where}: {shared} bytes of shared memory"
            assert spilled <= SPILLED[kind], f"{where}: {spilled} bytes spilled"


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


@compiled_here
@pytest.mark.parametrize(("kind", "generation", "width"), [("bf16", 90, 32), ("ieee", 80, 32)])
def test_first_choices_compile_and_fit(
    kind: tuning.Kind, generation: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_fits(kind, generation, width, monkeypatch, first=True)


@compiled_here
@pytest.mark.parametrize("features", [NOTHING, NOTHING | {"buckets": 64}, NOTHING | {"max_distance": 9}], ids=str)
def test_kernels_compile_without_what_is_optional(features: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is None in a launch is no argument of the compiled kernel."""
    assert_fits("bf16", 90, 32, monkeypatch, first=True, features=features)


@compiled_here
@exhaustive
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["bf16", "tf32", "ieee"])
@pytest.mark.parametrize("generation", tuning.GENERATIONS)
@pytest.mark.parametrize("width", tuning.WIDTHS)
def test_all_choices_compile_and_fit(
    kind: tuning.Kind, generation: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_fits(kind, generation, width, monkeypatch, first=False)
