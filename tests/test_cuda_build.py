"""How setup.py builds the CUDA library: by which compiler, for what, under which name. benchmarks/wheels.py does."""

import shutil
import sys
from pathlib import Path

import pytest


def fake_nvcc(home: Path) -> Path:
    """One that says its version, and otherwise copies what is no library to where a library should be."""
    program = home / "bin" / "nvcc"
    program.parent.mkdir(parents=True)
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Cuda compilation tools, release 12.9, V12.9.86" && exit\n'
        'given="$*"\nwhile [ "$1" != -o ]; do shift; done\necho "$0 $given" > "$2"\n'
    )
    program.chmod(0o755)
    return program


@pytest.fixture(autouse=True)
def _nothing_is_named(monkeypatch):
    for name in ("NVCC", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)


def test_the_compiler_is_the_nearest(setup_py, monkeypatch, tmp_path):
    packaged = fake_nvcc(tmp_path / "site" / "nvidia" / "cu13")
    on_path, at_home = fake_nvcc(tmp_path / "path"), fake_nvcc(tmp_path / "home")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert setup_py.nvcc() == str(on_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    assert setup_py.nvcc() == str(packaged)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert setup_py.nvcc() == str(at_home)
    monkeypatch.setenv("NVCC", "another")
    assert setup_py.nvcc() == "another"


def test_a_home_without_a_compiler_is_an_error(setup_py, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(setup_py.Unavailable, match=f"no nvcc in {tmp_path}"):
        setup_py.nvcc()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_it_builds_for_what_there_are_kernels_for(setup_py, monkeypatch, tmp_path, capsys):
    compiler = fake_nvcc(tmp_path / "home")
    monkeypatch.chdir(Path(setup_py.__file__).parent)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert setup_py.cuda_version() == "129"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5;8.0;9.0+PTX")
    setup_py.build_cuda_library(tmp_path / "made.so")
    made = (tmp_path / "made.so").read_text()
    assert made.startswith(f"{compiler} ")
    assert "arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_90,code=comp" in made
    assert '-DSIMMIM_CUDA_ARCHITECTURES="sm_80 sm_90a compute_90"' in made
    assert "no CUDA kernels for 7.5" in capsys.readouterr().out
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0 Turing")
    with pytest.raises(setup_py.Unavailable, match=r"must name one from 8\.0 on, got '7\.0 Turing'"):
        setup_py.build_cuda_library(tmp_path / "made.so")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("", ["sm_80", "sm_90a", "compute_80"]),
        ("8.6 9.0a;9.0", ["sm_86", "sm_90a"]),
        ("Hopper", ["sm_90a", "compute_90"]),
        ("12.0a+PTX", ["sm_120", "compute_120"]),
    ],
)
def test_the_architectures_are_named_as_for_pytorch(setup_py, wanted, found):
    assert setup_py.cuda_architectures(wanted) == found


def test_cuda_12_is_known_by_its_packages(setup_py, monkeypatch, tmp_path):
    header = tmp_path / "cuda_runtime" / "include" / "cuda.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define CUDA_VERSION 12090\n")
    (tmp_path / "cuda_nvrtc").mkdir()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert setup_py.without_nvcc() == tmp_path
    assert setup_py.cuda_version() == "129"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    with pytest.raises(setup_py.Unavailable, match=r"NVRTC compiles for 9\.0a alone"):
        setup_py.build_cuda_library(tmp_path / "made.so")


def test_nothing_is_compiled_unless_asked_for(setup_py, monkeypatch):
    monkeypatch.delenv("SIMMIM_KERNELS_CUDA", raising=False)
    assert setup_py.CUDA.asked == "0"
    assert setup_py.NATIVE.asked in ("", "0", "1")


def test_the_tag_names_the_oldest_glibc(setup_py, tmp_path):
    first, second = tmp_path / "first.so", tmp_path / "second.so"
    first.write_bytes(b"\0GLIBC_2.2.5\0GLIBC_2.14\0GLIBCXX_3.4.30\0")
    second.write_bytes(b"\0GLIBC_2.34\0")
    assert setup_py.manylinux("linux_x86_64", [first]) == "manylinux_2_17_x86_64"
    assert setup_py.manylinux("linux_aarch64", [first, second]) == "manylinux_2_34_aarch64"
