"""Wheels with the CUDA library, one for each CUDA that can be had, each built and then tried in a Python of its own.

    python -m benchmarks.wheels FOLDER [--cuda HOME ...] [--python PYTHON ...] [--torch REQUIREMENT ...]

HOME is a toolkit, of which a site-packages/nvidia/cu13 is one, or a site-packages/nvidia with NVRTC of CUDA 12
(docs/cuda-wheels.md); without any, the machine's toolkit is taken. A wheel is
installed into a fresh venv for each Python and each PyTorch, or beside that of the running Python where none is named,
and there it must load without a driver and say why it cannot run, and name its CUDA version and its architectures. The
library must hold code for these and no other, and give away no symbol but its own. Prints a table, in Markdown.
"""

import argparse
import ctypes
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import triton

ROOT = Path(__file__).parents[1]
# EM_CUDA
NVIDIA = 190
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
LIBRARY = "simmim_kernels/backends/cuda/_cuda.so"
# As their names begin in the library: with their length.
KERNELS = ("6kernel", "10mma_kernel")
PROGRAM = """
import simmim_kernels as sk
from simmim_kernels.backends.cuda import library
assert library.why_not() is None, library.why_not()
print(library.built_for())
print(sk.backends()["cuda"])
"""


class Made(NamedTuple):
    wheel: Path
    cuda: str
    """As in 13.0"""
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cuda", type=Path, nargs="*", default=[Path("/usr/local/cuda")], metavar="HOME")
    parser.add_argument("--python", nargs="*", default=[sys.executable])
    parser.add_argument("--torch", nargs="*", default=[None])
    arguments = parser.parse_args()
    print("| wheel | CUDA | build | wheel | library | without a driver |\n|---|---|---|---|---|---|")
    for home in arguments.cuda:
        made = build(home, arguments.folder)
        said = ""
        for python in arguments.python:
            for torch in arguments.torch:
                said = check(made, python, torch)
        with tempfile.TemporaryDirectory() as folder:
            library = extracted(made.wheel, Path(folder))
            check_library(library)
            sizes = [f"{path.stat().st_size / 1e6:.1f} MB" for path in (made.wheel, library)]
        print(
            "|", " | ".join([f"`{made.wheel.name}`", made.cuda, f"{made.seconds:.0f} s", *sizes, said]), "|", flush=True
        )


def run(*command: str | Path, **environment: str) -> str:
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def build(home: Path, folder: Path) -> Made:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as apart:
        options = ("--no-deps", "--no-build-isolation", "-q", "--wheel-dir", apart)
        run(sys.executable, "-m", "pip", "wheel", *options, ".", SIMMIM_KERNELS_CUDA="1", CUDA_HOME=str(home))
        (wheel,) = Path(apart).glob("*.whl")
        seconds = time.monotonic() - began
        named = re.search(r"\+cu(\d+)(\d)-py3-none-manylinux_2_\d+_", wheel.name)
        assert named, wheel.name
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / wheel.name
        kept.write_bytes(wheel.read_bytes())
    return Made(kept, ".".join(named.groups()), seconds)


def check(made: Made, python: str, torch: str | None) -> str:
    """Installs the wheel and returns why the backend cannot run."""
    with tempfile.TemporaryDirectory() as folder:
        run(python, "-m", "venv", folder)
        own = Path(folder, "bin", "python")
        if torch is None:
            site = next(Path(folder, "lib").glob("python3*/site-packages"))
            (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        else:
            run(own, "-m", "pip", "install", "-q", torch, "numpy")
        run(own, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", made.wheel)
        result = subprocess.run(
            [str(own), "-c", PROGRAM], capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": ""}
        )
        assert result.returncode == 0, result.stderr
    built, reason = result.stdout.splitlines()
    of, architectures = built.split(", ")
    assert of == f"CUDA {made.cuda}", built
    assert "sm_90a" in architectures, built
    return reason


def extracted(wheel: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "zipfile", "-e", wheel, folder)
    return folder / LIBRARY


def check_library(library: Path) -> None:
    defined = run("nm", "-D", "--defined-only", library).split()[2::3]
    assert defined, "no symbols"
    assert all(name.startswith("simmim_cuda_") for name in defined), defined
    said = architectures(library)
    listed = subprocess.run([str(TOOL), "-sass", str(library)], capture_output=True, text=True).stdout
    if "HGMMA" not in listed:
        listed = "".join(run(TOOL, "-sass", image) for image in images(library))
    code = dict(re.findall(r"code for (sm_\w+)(.*?)(?=\n\s*code for|\Z)", listed, re.DOTALL))
    assert set(code) == {name for name in said if name.startswith("sm_")}, (said, set(code))
    ptx = subprocess.run([str(TOOL), "-lptx", str(library)], capture_output=True, text=True).stdout
    assert ("compute_" in " ".join(said)) == (".ptx" in ptx), (said, ptx)
    # Every kernel has the matrix instructions that were meant: 2 x 64 rows in 4 steps, or of a warp 2 x 16 blocks in 2.
    for architecture, text in code.items():
        kernels, others = (len(set(re.findall(rf"Function : (\S*{name}I\S*)", text))) for name in KERNELS)
        assert min(kernels, others) > 0, "no kernels"
        expected = 8 * kernels if architecture == "sm_90a" else 0
        assert text.count("HGMMA") == expected, (architecture, kernels, text.count("HGMMA"))
        assert text.count("HMMA") == 64 * others, (architecture, others, text.count("HMMA"))


def architectures(library: Path) -> list[str]:
    """Those that the library says it has code for."""
    found = ctypes.CDLL(str(library))
    found.simmim_cuda_architectures.restype = ctypes.c_char_p
    return found.simmim_cuda_architectures().decode().split()


def images(library: Path) -> list[Path]:
    """What NVRTC made, which lies in the library as it is: ELF files of NVIDIA's machine."""
    contents, found = library.read_bytes(), []
    for start in (match.start() for match in re.finditer(b"\x7fELF", contents)):
        if int.from_bytes(contents[start + 18 : start + 20], "little") == NVIDIA:
            found.append(library.with_suffix(f".{start}.cubin"))
            found[-1].write_bytes(contents[start:])
    return found


if __name__ == "__main__":
    main()
