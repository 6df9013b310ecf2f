"""What an installed wheel holds: the five packages and the configurations, nothing else."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("streaming", "foundation", "experts", "transfer", "hypercast")


def sources(*patterns):
    return {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for pattern in patterns
        for path in (ROOT / package).rglob(pattern)
        if "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory):
    """The names in a wheel that is built from a copy, so that the tree itself stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in (*PACKAGES, "configs", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / "tree" / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree" / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=folder / "tree", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_every_module_and_kernel_source(wheel_files):
    assert sources("*.py", "*.cpp", "*.h") <= wheel_files


def test_wheel_holds_every_configuration(wheel_files):
    shipped = {name.removeprefix("hypercast/") for name in wheel_files if name.startswith("hypercast/configs/")}
    assert shipped == {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}


def test_wheel_holds_nothing_but_the_packages(wheel_files):
    tops = {name.split("/")[0] for name in wheel_files}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


@pytest.mark.parametrize("path", sorted(sources("__init__.py")))
def test_packages_import_nothing_by_themselves(path):
    """Importing one module of a package must not pull in the others."""
    body = ast.parse((ROOT / path).read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def test_every_folder_with_modules_is_a_package():
    folders = {Path(path).parent for path in sources("*.py")}
    assert {folder.as_posix() for folder in folders if not (ROOT / folder / "__init__.py").exists()} == set()
