"""Compiles the kernels for the instruction set of this machine, once; the library is kept in the user's cache.

The file's name is a digest of everything it was made from (sources, flags, compiler, torch), so that machines of
different kinds may share a home folder and a change of any of them compiles anew. `make setup` runs this module.
"""

import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

KERNELS = Path(__file__).parent / "kernels"
LOG = logging.getLogger(__name__)

FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-shared",
    "-fopenmp",
    # What loops need to be vectorised. None of these four changes how a sum is ordered.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-ffinite-math-only",
]
INSTRUCTION_SETS = {
    "AVX512": ["-march=x86-64-v4", "-mtune=native", "-mprefer-vector-width=512"],
    "AVX2": ["-march=x86-64-v3", "-mtune=native"],
}


class BuildError(RuntimeError):
    """The kernels cannot be compiled here; the message says why."""


def instruction_set() -> str:
    """``AVX512`` or ``AVX2``: what torch uses here (it honours ``ATEN_CPU_CAPABILITY``).

    Raises:
        BuildError: the CPU has neither.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    for name in INSTRUCTION_SETS:
        if platform.machine() == "x86_64" and capability.startswith(name):
            return name
    raise BuildError(f"the kernels need an x86-64 CPU with AVX2 or AVX-512; this is {platform.machine()}, {capability}")


def compiled() -> Path:
    """The library for this machine, compiled if it was not before (10 to 30 seconds).

    Raises:
        BuildError: no compiler, or it failed, or the cache cannot be written.
    """
    sources = sorted(path for path in KERNELS.iterdir() if path.suffix in {".cpp", ".h"})
    command = [*compiler(), *FLAGS, *INSTRUCTION_SETS[instruction_set()]]
    digest = hashlib.sha256(repr((command, compiler_version(), torch.__version__)).encode())
    for path in sources:
        digest.update(path.name.encode() + path.read_bytes())
    library = cache_folder() / f"hstu-attention-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        LOG.info("compiling the attention kernels for %s into %s", instruction_set(), library)
        _compile(command, [path for path in sources if path.suffix == ".cpp"], library)
    return library


def compiler() -> list[str]:
    """The C++ compiler: ``$CXX``, or ``c++``."""
    return shlex.split(os.environ.get("CXX", "c++"))


@functools.cache
def compiler_version() -> str:
    """What the compiler says of itself.

    Raises:
        BuildError: there is none.
    """
    try:
        return subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(
            f"no C++ compiler ({shlex.join(compiler())}): install one (Debian: apt install g++) or name it, CXX=g++-12"
        ) from error


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/hypercast``, or ``~/.cache/hypercast``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hypercast"


def _compile(command: list[str], sources: list[Path], library: Path) -> None:
    includes = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed: no process ever loads half a library, and none waits for a lock left behind.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            ended = subprocess.run(
                [*command, *includes, *map(str, sources), *libraries, "-ltorch_cpu", "-lc10", "-o", str(made)],
                capture_output=True,
                text=True,
                check=False,
            )
            if ended.returncode != 0:
                raise BuildError(f"{shlex.join(compiler())} failed: {ended.stderr.strip()[-2000:]}")
            made.replace(library)
    except OSError as error:
        raise BuildError(f"cannot write {library.parent}: {error}; XDG_CACHE_HOME names another folder") from error
