"""The doctor, on the real environment and on broken ones."""

import importlib
import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from foundation.hstu.attention import dispatch
from foundation.hstu.attention.cpu import build
from hypercast import doctor


def by_name(findings):
    return {finding.name: finding for finding in findings}


@pytest.fixture
def versions(monkeypatch):
    """Versions that installed packages claim instead of their own; None means not installed."""
    claimed = {}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: claimed[name] if name in claimed else real(name))
    return claimed


@pytest.fixture
def owners(monkeypatch):
    """Distributions that claim import names, to be changed by a test."""
    claimed = dict(importlib.metadata.packages_distributions())
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: claimed)
    return claimed


@pytest.fixture
def broken_imports(monkeypatch):
    """Modules that raise an error when the doctor imports them."""
    broken = {}
    real = importlib.import_module

    def import_module(name):
        if name in broken:
            raise broken[name]
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    return broken


def test_this_environment_is_healthy():
    findings = doctor.diagnose()
    assert [finding for finding in findings if finding.status == "fail"] == []
    named = by_name(findings)
    assert named["fbgemm operators"].status == "ok"
    assert named["attention: reference"].detail == "available"
    assert {"torch stack", "ray", "mlflow", "triton", "pandas", "pyarrow", "cpu", "memory", "cuda"} <= named.keys()


def test_every_problem_says_how_to_mend_it(versions, owners, broken_imports):
    versions |= {"torch": "2.12.0", "ray": None}
    owners["fbgemm_gpu"] = ["fbgemm_gpu", "fbgemm_gpu-cpu"]
    broken_imports["mlflow"] = ImportError("no")
    problems = [finding for finding in doctor.diagnose() if finding.status != "ok"]
    assert {"torch stack", "fbgemm build", "ray", "mlflow"} <= {finding.name for finding in problems}
    assert all(finding.mend for finding in problems)


def test_torch_and_fbgemm_of_different_generations(versions):
    versions["torch"] = "2.14.0+cpu"
    finding = by_name(doctor.torch_stack())["torch stack"]
    assert finding.status == "fail"
    assert "torch 2.14.0+cpu" in finding.detail
    assert "fbgemm 1.8 with torch 2.13" in finding.detail


@pytest.mark.parametrize(
    ("torch", "fbgemm", "torchrec", "status"),
    [
        ("2.13.0", "1.8.0", "1.8.0", "ok"),
        ("2.14.1+cpu", "1.9.0", "1.9.1", "ok"),
        ("2.13.0", "1.9.0", "1.9.0", "fail"),
        ("2.13.0", "1.8.0", "1.7.0", "fail"),
        ("2.30.0", "2.7.0", "2.7.0", "warn"),
        ("2.13.0", None, "1.8.0", "fail"),
        (None, "1.8.0", "1.8.0", "fail"),
    ],
)
def test_which_versions_belong_together(torch, fbgemm, torchrec, status):
    [finding] = doctor.matching(torch=torch, fbgemm=fbgemm, torchrec=torchrec)
    assert finding.status == status


def test_two_builds_of_fbgemm_have_overwritten_each_other(owners):
    owners["fbgemm_gpu"] = ["fbgemm_gpu-cpu", "fbgemm_gpu", "fbgemm_gpu"]
    finding = by_name(doctor.torch_stack())["fbgemm build"]
    assert finding.status == "fail"
    assert "fbgemm_gpu and fbgemm_gpu-cpu" in finding.detail
    assert "--no-deps" in finding.mend


def test_a_library_that_does_not_load_leaves_the_other_findings(broken_imports):
    module = "fbgemm_gpu.split_table_batched_embeddings_ops_common"
    broken_imports[module] = OSError("libcudart.so.13: cannot open shared object file\nmore")
    named = by_name(doctor.diagnose())
    assert named["fbgemm operators"].status == "fail"
    assert "libcudart.so.13" in named["fbgemm operators"].detail
    assert named["torch stack"].status == "ok"
    assert named["pyarrow"].status == "ok"


def test_without_torch_the_other_findings_remain(broken_imports, versions):
    broken_imports["torch"] = ModuleNotFoundError("No module named 'torch'")
    versions["torch"] = None
    named = by_name(doctor.diagnose())
    assert named["torch stack"].status == "fail"
    assert named["cuda"].status == "fail"
    assert named["import names"].status == "ok"


def test_a_package_found_elsewhere_shadows_ours(tmp_path, monkeypatch):
    other = tmp_path / "transfer"
    other.mkdir()
    (other / "__init__.py").touch()
    information = tmp_path / "transfer-0.3.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: transfer\nVersion: 0.3\n")
    (information / "top_level.txt").write_text("transfer\n")
    for module in [name for name in sys.modules if name.split(".")[0] == "transfer"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)

    named = by_name(doctor.import_names())
    assert named["import transfer"].status == "fail"
    assert str(other) in named["import transfer"].detail
    assert "pip uninstall transfer" in named["import transfer"].mend
    assert "import names" not in named


def test_a_distribution_of_the_same_name_that_comes_second_is_a_warning(owners):
    owners["streaming"] = [doctor.DISTRIBUTION, "mosaicml-streaming"]
    [finding] = doctor.import_names()
    assert finding.status == "warn"
    assert "mosaicml-streaming" in finding.detail


def test_a_missing_package_of_ours():
    root = Path("/somewhere")
    locations = {name: root / name for name in doctor.PACKAGES} | {"experts": None}
    [finding] = doctor.shadowing(root=root, locations=locations, owners={})
    assert (finding.name, finding.status) == ("import experts", "fail")


def test_a_version_outside_the_range():
    assert doctor.fitting("ray", "2.60.0", ">=2.50,<3").status == "ok"
    finding = doctor.fitting("ray", "3.1.0", ">=2.50,<3")
    assert finding.status == "warn"
    assert ">=2.50,<3" in finding.detail


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler -O2")
    [finding] = doctor.compiler()
    assert finding.status == "warn"
    assert "/no/such/compiler is not a program" in finding.detail
    assert "g++" in finding.mend


def test_the_compiler_named(monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} --fast")
    [finding] = doctor.compiler()
    assert (finding.status, finding.detail) == ("ok", sys.executable)


def test_backends_of_attention(monkeypatch):
    states = {"reference": "available", "blockwise": "available", "cpu": "available", "triton": "no GPU"}
    monkeypatch.setattr(dispatch, "available", lambda: states)
    monkeypatch.setattr(build, "instruction_set", lambda: "AVX2")
    named = by_name(doctor.attention_kernels())
    assert {finding.status for finding in named.values()} == {"ok"}
    assert named["attention: blockwise"].detail == "available"
    assert named["attention: cpu"].detail == f"compiled for AVX2, in {build.cache_folder()}"
    assert named["attention: triton"].detail == "not here: no GPU"


def test_kernels_that_cannot_be_compiled_say_what_takes_over(monkeypatch):
    monkeypatch.setattr(dispatch, "available", lambda: {"cpu": "no C++ compiler (c++): install one"})
    [finding] = doctor.attention_kernels()
    assert finding.status == "warn"
    assert "no C++ compiler (c++): install one" in finding.detail
    assert "blockwise PyTorch path takes over" in finding.detail
    assert "hypercast doctor" in finding.mend


def test_cpu_flags():
    text = "processor\t: 0\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    assert doctor.cpu_flags(text) == {"fpu", "avx2", "avx512f"}
    assert doctor.cpu_flags("") == set()


def test_json_report_and_exit_status(monkeypatch, capsys):
    finding = doctor.Finding("ray", "warn", "old", "pip install ray")
    monkeypatch.setattr(doctor, "diagnose", lambda: [finding])
    assert doctor.run(json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {
        "healthy": True,
        "findings": [{"name": "ray", "status": "warn", "detail": "old", "mend": "pip install ray"}],
    }
    monkeypatch.setattr(doctor, "diagnose", lambda: [finding, doctor.Finding("torch", "fail", "[none]", "install it")])
    assert doctor.run() == 1
    shown = capsys.readouterr().out
    assert "[none]" in shown
    assert "install it" in shown
