"""Builds the native CPU library where that is possible; pyproject.toml says all else about the package.

It needs a C++17 compiler, but neither Python's headers nor PyTorch's: it is a plain shared library, loaded with ctypes,
and one wheel serves every Python 3. With OpenMP it has threads; where the compiler has none, a library of one thread is
built. Where it cannot be built the package is installed without it, and holds the reason.

    SIMMIM_KERNELS_NATIVE=0   leaves it out
    SIMMIM_KERNELS_NATIVE=1   fails where it cannot be built
    CXX, CXXFLAGS, LDFLAGS    mean what they mean everywhere
    SIMMIM_KERNELS_EMULATE_TILES=1   for tests: portable kernels alone, and those on AMX's tiles with the tiles emulated
"""

import os
import re
import runpy
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError


class InstructionSet(NamedTuple):
    name: str
    vector_bytes: int
    block_rows: int  # of the register block of a product: as many as there are registers for
    flags: str = ""

    @property
    def options(self) -> list[str]:
        """What a source of the kernels is compiled with."""
        macros = {"ISA": self.name, "VECTOR_BYTES": self.vector_bytes, "BLOCK_ROWS": self.block_rows}
        return [*(f"-DSIMMIM_{macro}={value}" for macro, value in macros.items()), *self.flags.split()]


PORTABLE = InstructionSet("portable", vector_bytes=16, block_rows=4)
NEON = InstructionSet("neon", vector_bytes=16, block_rows=8)
AVX2 = InstructionSet("avx2", 32, 6, "-mavx2 -mfma -mf16c")
AVX512 = InstructionSet("avx512", 64, 12, "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mf16c")
AVX512_BF16 = AVX512._replace(name="avx512_bf16", flags=f"{AVX512.flags} -mavx512bf16")
# Where the system gives processes its registers, as Linux does, and the compiler knows it, as GCC 11 does.
AVX512_AMX = AVX512._replace(name="avx512_amx", flags=f"{AVX512_BF16.flags} -mamx-tile -mamx-bf16")
# What AVX512_AMX does, in plain C++: for tests.
EMULATED_TILES = PORTABLE._replace(name="emulated_tiles", flags="-DSIMMIM_EMULATED_TILES")

# By the first word of the compiler's target; elsewhere PORTABLE alone. Weakest first: of the inline functions of the
# standard library, which several objects hold, the linker keeps the first, and that must run on every processor.
INSTRUCTION_SETS = {
    "x86_64": [PORTABLE, AVX2, AVX512, AVX512_BF16, AVX512_AMX],
    "aarch64": [PORTABLE, NEON],
    "arm64": [PORTABLE, NEON],
}

FLAGS = "-std=c++17 -O3 -fvisibility=hidden -fPIC"
# After the user's: link-time optimisation would merge the sets' objects before the linker can keep the weakest first.
NO_LTO = "-fno-lto"


class OpenMP(NamedTuple):
    flags: str  # of compiler and linker
    libraries: str = ""


# The first that makes a library. Apple's clang has OpenMP's front end alone, and leaves the library, LLVM's, to others.
OPENMP = [OpenMP("-fopenmp"), OpenMP("-Xclang -fopenmp", "-lomp"), OpenMP("")]
OPENMP_SOURCE = """
#include <omp.h>
int threads() {
  int count = 0;
#pragma omp parallel reduction(+ : count)
  count += omp_get_num_threads() > 0;
  return count;
}
"""
SOURCES = Path("csrc/cpu")
PACKAGE = "simmim_kernels.backends.native"
LIBRARY = "_native.so"
# Beside the library, or in its place.
DIGEST = "_native_digest.txt"
REASON = "_native_unavailable.txt"


class Unavailable(Exception):
    """The library cannot be built. The first line says why, the others are the compiler's."""


def build_library(library: Path, objects: Path) -> None:
    if sys.platform == "win32":
        raise Unavailable("there is no build for Windows")
    compiler, compiler_flags, linker_flags = (
        shlex.split(os.environ.get(name, "")) for name in ("CXX", "CXXFLAGS", "LDFLAGS")
    )
    compiler = compiler or ["c++"]
    machine = run([*compiler, "-dumpmachine"]).strip()
    objects.mkdir(parents=True, exist_ok=True)

    def takes(contents: str, flags: str, libraries: str = "") -> bool:
        """Whether the compiler makes a library of a source with these flags beside the user's."""
        source = objects / "probe.cpp"
        source.write_text(contents, encoding="ascii")
        command = [*compiler, *FLAGS.split(), *compiler_flags, *flags.split(), "-shared", str(source), *linker_flags]
        return execute([*command, *libraries.split(), "-o", str(source.with_suffix(".so"))]).returncode == 0

    openmp = next(each for each in OPENMP if not each.flags or takes(OPENMP_SOURCE, *each))
    if not openmp.flags:
        print(f"{shlex.join(compiler)} has no OpenMP: the native library will have one thread", flush=True)
    last = [NO_LTO] if takes("", NO_LTO) else []
    flags = [*FLAGS.split(), *openmp.flags.split(), *compiler_flags, *last]
    sets = INSTRUCTION_SETS.get(machine.split("-")[0], [PORTABLE])
    if "linux" not in machine or not takes("", AVX512_AMX.flags):
        sets = [each for each in sets if each != AVX512_AMX]
    if os.environ.get("SIMMIM_KERNELS_EMULATE_TILES") == "1":
        sets = [PORTABLE, EMULATED_TILES]

    # The first object, which runs before any choice is made, has no instruction set's flags.
    compilations = [("dispatch", "dispatch.cpp", [f"-DSIMMIM_HAS_{each.name.upper()}" for each in sets])]
    compilations += [(each.name, "kernels.cpp", each.options) for each in sets]

    def compiled(compilation: tuple[str, str, list[str]]) -> str:
        name, source, own_flags = compilation
        target = objects / f"{name}.o"
        run([*compiler, *flags, *own_flags, "-c", str(SOURCES / source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        linked = list(pool.map(compiled, compilations))
    linker_flags = [*linker_flags, *openmp.libraries.split(), *last]
    run([*compiler, *flags, "-shared", *linked, *linker_flags, "-o", str(library)])


def execute(command: list[str]) -> subprocess.CompletedProcess[str]:
    print(shlex.join(command), flush=True)
    try:
        # In English, for the search below.
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", env={**os.environ, "LC_ALL": "C"}
        )
    except OSError as error:
        raise Unavailable(f"no C++ compiler: {command[0]}: {error.strerror}") from None


def run(command: list[str]) -> str:
    result = execute(command)
    print(result.stderr, end="", file=sys.stderr, flush=True)
    if result.returncode:
        lines = result.stderr.splitlines() or [f"exit status {result.returncode}"]
        # What went wrong, rather than where, or that something did.
        errors = (line for line in lines if re.search(r"error: (?!ld returned|linker command)", line))
        raise Unavailable("\n".join([f"{command[0]} failed: {next(errors, lines[0])}", *lines[-10:]]))
    return result.stdout


class BuildNative(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        # setuptools would name the Python ABI, which the library does not use.
        return os.path.join(*fullname.split(".")[:-1], LIBRARY)

    def run(self) -> None:
        wish = os.environ.get("SIMMIM_KERNELS_NATIVE", "")
        library = Path(self.get_ext_fullpath(f"{PACKAGE}._native"))
        digest, reason = library.with_name(DIGEST), library.with_name(REASON)
        library.parent.mkdir(parents=True, exist_ok=True)
        for stale in (library, digest, reason):
            stale.unlink(missing_ok=True)
        try:
            if wish == "0":
                raise Unavailable("SIMMIM_KERNELS_NATIVE=0 left it out of the build")
            build_library(library, Path(self.build_temp))
            # Run by its path: the package itself needs PyTorch.
            found = runpy.run_path("simmim_kernels/backends/integrity.py")["digest"](library.read_bytes())
            if found is not None:
                digest.write_text(f"{found}\n", encoding="ascii")
        except Unavailable as error:
            if wish == "1":
                raise CompileError(f"SIMMIM_KERNELS_NATIVE=1, but the native library is unavailable: {error}") from None
            self.warn(f"installing without the native library: {error}")
            reason.write_text(f"{error}\n", encoding="utf-8")
            self.extensions = []  # nothing for an editable install to link to


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        # Asked for when the contents are in place. With the library, they run on one platform but under any Python 3.
        self.root_is_pure = not Path(self.bdist_dir, *PACKAGE.split("."), LIBRARY).exists()
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])


def long_description() -> str:
    """The README for readers who meet it away from the repository: its links and images name the release's files."""
    (source,) = re.findall(r'^Source = "(.*)"$', Path("pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    version = runpy.run_path("simmim_kernels/version.py")["__version__"]

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link[0].endswith((".png", ".svg")) else "blob"
        return f"{source}/{kind}/v{version}/{link[0]}"

    # In Markdown what follows "](", unless it has a scheme or stays on the page.
    return re.sub(r"(?<=\]\()(?!\w+:|#)[^)\s]+(?=\))", absolute, Path("README.md").read_text(encoding="utf-8"))


# The tests import parts of this file.
if __name__ == "__main__":
    setup(
        long_description=long_description(),
        long_description_content_type="text/markdown",
        ext_modules=[Extension(f"{PACKAGE}._native", [str(SOURCES / "dispatch.cpp"), str(SOURCES / "kernels.cpp")])],
        cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
    )
